#!/bin/sh
# Fails when a kernel configuration lacks or contradicts a line of what was wanted. usage: check_config.sh WANTED CONFIG
set -eu
wanted=$1 config=$2
[ -s "$wanted" ] && [ -s "$config" ] || { echo "check_config.sh: $wanted and $config must have content" >&2 && exit 2; }
bad=0
while read -r line; do
  case $line in
    CONFIG_*) grep -qxF -- "$line" "$config" || { echo "olddefconfig dropped or changed: $line" >&2 && bad=1; } ;;
    '# CONFIG_'*' is not set')
      symbol=${line#\# } symbol=${symbol%% *}
      if grep -q "^$symbol=" "$config"; then echo "olddefconfig switched on: $(grep "^$symbol=" "$config")" >&2 && bad=1; fi
      ;;
    '' | '#'*) ;;
    *) echo "check_config.sh: neither an option nor a comment: $line" >&2 && bad=1 ;;
  esac
done < "$wanted"
exit $bad
