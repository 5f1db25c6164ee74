# Sourced when the execution needs more than its code: notes what after.sh has to do at its end.

# Sticky: a function may set the trap later. Asking bash for it costs a temporary file.
[[ ${__sbx_line:2:1} == - ]] || builtin printf '__sbx_traps=1\n' >>/run/sbx/state/after
if [[ ${__sbx_line:1:1} == e ]]; then
  . /run/sbx/env
  for __sbx_index in "${!__sbx_names[@]}"; do
    __sbx_name=${__sbx_names[__sbx_index]}
    __sbx_old=${ builtin declare -p "$__sbx_name"; }
    builtin printf '__sbx_restore+=%q\n' "unset -v $__sbx_name"$'\n'"$__sbx_old"$'\n' >>/run/sbx/state/after
    # With its attributes.
    builtin unset -v "$__sbx_name"
    builtin export "$__sbx_name=${__sbx_values[__sbx_index]}"
  done
  builtin unset -v __sbx_index __sbx_names __sbx_values __sbx_name __sbx_old
fi
if [[ ${__sbx_line:3:1} == i ]]; then
  builtin printf '__sbx_stdin=1\n' >>/run/sbx/state/after
  exec </run/sbx/stdin
  builtin printf '\0\0\0\0\2\0\0\0\0\0\0\0\0\0\0\0' >|/run/sbx/reply
fi
