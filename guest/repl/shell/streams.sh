# Sourced by exit.sh: what is still redirected for a function that did not return, or for a function substitution, goes back where it was.
# bash keeps what stood there from descriptor 10 on, closed on exec, the outermost first, and for the substitution from 255 down; which
# stream that was only its name says.

builtin set +f
builtin shopt -u failglob nullglob
IFS=$' \t\n'
{ builtin read -r __sbx_out __sbx_err </run/sbx/state/streams; } 2>/dev/null
__sbx_kept= __sbx_flags= __sbx_link=$(/usr/bin/readlink /proc/$$/fd/1)
[[ $__sbx_link == /memfd:anonopen* ]] && __sbx_own=1 || __sbx_own=
for __sbx_fd in /proc/$$/fd/*; do
  __sbx_fd=${__sbx_fd##*/}
  case $__sbx_fd in
    [0-2]) continue ;;
  esac
  { builtin read -r -d '' __sbx_flags <"/proc/$$/fdinfo/$__sbx_fd"; } 2>/dev/null
  [[ $__sbx_own || $__sbx_flags =~ flags:[[:space:]]*[0-7]*[2367][0-7]{6}[[:space:]] ]] || continue
  __sbx_link=$(/usr/bin/readlink "/proc/$$/fd/$__sbx_fd")
  case $__sbx_kept, in
    *,"$__sbx_link",*) continue ;;
  esac
  case $__sbx_link in
    "$__sbx_out") exec >&"$__sbx_fd" {__sbx_fd}>&- ;;
    "$__sbx_err") exec 2>&"$__sbx_fd" {__sbx_fd}>&- ;;
    /dev/null | /run/sbx/stdin) exec </dev/null ;;
    /memfd:anonopen*) exec {__sbx_fd}>&- ;;
    *) continue ;;
  esac
  __sbx_kept+=,$__sbx_link
done
