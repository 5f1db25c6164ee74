# Sourced by assist.sh: replies whether the code is finished.

LC_ALL=C.UTF-8 IFS=$' \t\n'
__sbx_state= __sbx_error= __sbx_last= __sbx_indent= __sbx_rest=
builtin mapfile -d '' -t __sbx_code </run/sbx/code
__sbx_code=${__sbx_code%$'\n'}

# Parses without running and sets `state`. bash says what is missing only in its messages.
__sbx_parse() {
  __sbx_error=$(builtin eval "builtin set -n"$'\n'"$1" 2>&1)
  case $__sbx_error in
    '') __sbx_state=complete ;;
    *'syntax error near'* | *'syntax error in conditional'*) __sbx_state=invalid ;;
    *'unexpected end of file'* | *'unexpected EOF'* | *'here-document at line'*) __sbx_state=incomplete ;;
    *) __sbx_state=invalid ;;
  esac
}

__sbx_parse "$__sbx_code"
# A backslash at the end continues the line, but not in a comment: there a quote in its place is nothing either.
__sbx_rest=${__sbx_code##*[!\\]}
if [[ $__sbx_state == complete ]] && ((${#__sbx_rest} % 2)); then
  __sbx_parse "${__sbx_code%\\}'"
fi
if [[ $__sbx_state == incomplete ]]; then
  __sbx_last=${__sbx_code##*$'\n'}
  __sbx_indent=${__sbx_last%%[![:blank:]]*}
  __sbx_last=${__sbx_last%"${__sbx_last##*[![:blank:]]}"}
  case $__sbx_error in
    *'here-document at line'* | *"matching \`\"'"* | *"matching \`''"*) __sbx_indent= ;;
    *)
      [[ ! $__sbx_last =~ (^|[[:blank:];&|])(then|do|else|\{|\(|in)$|[^[:blank:]][\(\)]$|\(\)[[:blank:]]*\{$ ]] || __sbx_indent+='  '
      ;;
  esac
fi
__sbx_indent=${__sbx_indent//$'\t'/'\t'}
builtin printf -v __sbx_rest '{"state":"%s","indent":"%s"}' "$__sbx_state" "$__sbx_indent"
. /run/sbx/answer.sh "$__sbx_rest"
