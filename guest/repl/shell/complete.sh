# Sourced by assist.sh: replies what may stand at the end of the code. Nothing is run: not the user's `complete`, no substitution.

builtin shopt -u nocasematch nocaseglob failglob dotglob
builtin shopt -s nullglob
builtin set +f
builtin unset -v GLOBIGNORE GLOBSORT
IFS=$' \t\n'
__sbx_locale=${LC_ALL+set}
[[ $__sbx_locale ]] || LC_ALL=C.UTF-8
__sbx_mode=n __sbx_word= __sbx_command= __sbx_run= __sbx_literal= __sbx_base= __sbx_head=
__sbx_style=n __sbx_is_first=1 __sbx_is_target= __sbx_json=
builtin mapfile -d '' -t __sbx_code </run/sbx/code
# A word is looked for in the last lines alone.
__sbx_text=${__sbx_code: -8192}
[[ $__sbx_text ]] && __sbx_text=${__sbx_text#*$'\n'} || __sbx_text=$__sbx_code
__sbx_stack=() __sbx_found=() __sbx_candidates=()

# The word read so far is over: what is the next?
__sbx_end_word() {
  if [[ $__sbx_word && $__sbx_is_target ]]; then
    __sbx_is_target=
  elif [[ $__sbx_word && $__sbx_is_first && ! $__sbx_word =~ ^[A-Za-z_][A-Za-z0-9_]*\+?= ]]; then
    case $__sbx_word in
      if | then | else | elif | while | until | do | time | '!' | '{' | coproc | *'()' | *'(){') ;;
      *) __sbx_command=$__sbx_word __sbx_is_first= ;;
    esac
  fi
  __sbx_word=
}

__sbx_new_command() {
  __sbx_end_word
  __sbx_is_first=1 __sbx_is_target= __sbx_command=
}

# Into `$(`, `(`, backquotes or `${`, and out again.
__sbx_enter() {
  __sbx_stack+=("$__sbx_mode" "$__sbx_word$__sbx_run" "$__sbx_command" "$__sbx_is_first" "$__sbx_is_target")
  __sbx_mode=$1 __sbx_word= __sbx_command= __sbx_is_first=1 __sbx_is_target=
}

__sbx_leave() {
  if ((${#__sbx_stack[@]} == 0)); then
    # The end of a pattern in `case`.
    __sbx_new_command
    return
  fi
  __sbx_mode=${__sbx_stack[-5]} __sbx_word=${__sbx_stack[-4]}$1 __sbx_command=${__sbx_stack[-3]}
  __sbx_is_first=${__sbx_stack[-2]} __sbx_is_target=${__sbx_stack[-1]}
  __sbx_stack=("${__sbx_stack[@]::${#__sbx_stack[@]}-5}")
}

# Takes the longest start without a character of $1, else what stands there, and adds it to the word.
__sbx_take() {
  __sbx_run=${__sbx_rest%%["$1"]*}
  __sbx_rest=${__sbx_rest:${#__sbx_run}}
  __sbx_word+=$__sbx_run
}

# Reads the text; at its end the word before the cursor is in `word`, and `mode` says in which quotes it ends.
__sbx_scan() {
  __sbx_rest=$__sbx_text
  while [[ $__sbx_rest ]]; do
    case $__sbx_mode in
      n) __sbx_take $' \t\n;&|()<>#\'"\\$`' ;;
      s) __sbx_take "'" ;;
      q) __sbx_take '"\$`' ;;
      v) __sbx_take '}"\$`'"'" ;;
    esac
    [[ $__sbx_rest ]] || break
    case $__sbx_rest in
      "'"*) [[ $__sbx_mode == s ]] && __sbx_mode=n || { [[ $__sbx_mode != n ]] || __sbx_mode=s; }; __sbx_run="'" ;;
      '"'*) [[ $__sbx_mode == q ]] && __sbx_mode=n || { [[ $__sbx_mode != n ]] || __sbx_mode=q; }; __sbx_run='"' ;;
      \\*) __sbx_run=${__sbx_rest:0:2} ;;
      '$('*) __sbx_run='$('; __sbx_enter n; __sbx_rest=${__sbx_rest:2}; continue ;;
      '${'*) __sbx_run='${'; __sbx_enter v; __sbx_rest=${__sbx_rest:2}; continue ;;
      '$'*) __sbx_run='$' ;;
      '`'*)
        __sbx_run='`'
        if ((${#__sbx_stack[@]})) && [[ ${__sbx_stack[-4]} == *'`' ]]; then __sbx_leave '`'; else __sbx_enter n; fi
        __sbx_rest=${__sbx_rest:1}
        continue
        ;;
      '}'*) __sbx_leave '}'; __sbx_rest=${__sbx_rest:1}; continue ;;
      '('*) __sbx_run='('; __sbx_enter n; __sbx_rest=${__sbx_rest:1}; continue ;;
      ')'*) __sbx_leave ')'; __sbx_rest=${__sbx_rest:1}; continue ;;
      '#'*)
        __sbx_run='#'
        if [[ ! $__sbx_word ]]; then
          __sbx_rest=${__sbx_rest#"${__sbx_rest%%$'\n'*}"}
          [[ $__sbx_rest ]] || return 1
          continue
        fi
        ;;
      ['<>']*) __sbx_end_word; __sbx_is_target=1; __sbx_rest=${__sbx_rest#[<>]}; __sbx_rest=${__sbx_rest#[<>&|]}; continue ;;
      [[:blank:]]*) __sbx_end_word; __sbx_rest=${__sbx_rest:1}; continue ;;
      *) __sbx_new_command; __sbx_rest=${__sbx_rest:1}; continue ;;
    esac
    __sbx_word+=$__sbx_run
    __sbx_rest=${__sbx_rest:${#__sbx_run}}
  done
}

# What a part of a word means, to `literal`; begins and ends in `style`. Fails when it depends on something that would have to run.
__sbx_unquote() {
  local rest=$1 run
  __sbx_literal=
  while [[ $rest ]]; do
    case $__sbx_style in
      s) run=${rest%%\'*} ;;
      q) run=${rest%%['"\$`']*} ;;
      n) run=${rest%%[\'\"\\\$\`]*} ;;
    esac
    __sbx_literal+=$run
    rest=${rest:${#run}}
    case $rest in
      '') ;;
      "'"*) [[ $__sbx_style == s ]] && __sbx_style=n || __sbx_style=s; rest=${rest:1} ;;
      '"'*) [[ $__sbx_style == q ]] && __sbx_style=n || __sbx_style=q; rest=${rest:1} ;;
      \\*)
        [[ $__sbx_style == n || ${rest:1:1} == [\\\"\$\`] ]] || __sbx_literal+=\\
        __sbx_literal+=${rest:1:1}
        rest=${rest:2}
        ;;
      *)
        [[ $rest =~ ^\$(([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\}) ]] || return 1
        rest=${rest:${#BASH_REMATCH}}
        run=${BASH_REMATCH[2]}${BASH_REMATCH[3]}
        __sbx_literal+=${!run-}
        ;;
    esac
  done
}

# Files and directories for the word, those alone for which `test $1` holds.
__sbx_find_files() {
  local directory path test=$1
  if [[ $__sbx_word == '~' ]]; then
    __sbx_base='~' __sbx_candidates=('~/')
    return
  fi
  __sbx_base=${__sbx_word##*/}
  __sbx_head=${__sbx_word%"$__sbx_base"}
  __sbx_style=n
  if [[ $__sbx_head =~ ^~([A-Za-z_][A-Za-z0-9_-]*)?/ ]]; then
    builtin eval "directory=${BASH_REMATCH%/}"
    __sbx_unquote "${__sbx_head:${#BASH_REMATCH}-1}" || return
    directory+=$__sbx_literal
  else
    __sbx_unquote "$__sbx_head" || return
    directory=$__sbx_literal
  fi
  local before=$__sbx_style
  __sbx_unquote "$__sbx_base" || return
  local after=$__sbx_style name=$__sbx_literal quoted
  [[ $before == n ]] || __sbx_style=$before
  for path in "$directory$name"*; do
    [[ ! $test || -d $path ]] || { [[ $test == x && -x $path ]] || continue; }
    name=${path:${#directory}}
    builtin printf -v quoted %q "$name"
    case $__sbx_style in
      s) [[ $quoted != "$'"* ]] || continue; quoted=${name//\'/"'\\''"} ;;
      q) [[ $quoted != "$'"* ]] || continue; quoted=${name//'\'/'\\'} quoted=${quoted//'"'/'\"'} quoted=${quoted//'$'/'\$'} quoted=${quoted//'`'/'\`'} ;;
    esac
    local mark=
    case $__sbx_style in s) mark=\' ;; q) mark='"' ;; esac
    [[ $before != n ]] || quoted=$mark$quoted
    if [[ -d $path ]]; then quoted+=/; fi
    [[ -d $path && $after != n ]] || quoted+=$mark
    __sbx_candidates+=("$quoted")
    ((${#__sbx_candidates[@]} < 1000)) || break
  done
}

# Names that compgen knows, of the kinds $@.
__sbx_find_names() {
  __sbx_base=$__sbx_word
  [[ $__sbx_word != *[\'\"\\\$\`]* ]] || return
  __sbx_list "$__sbx_word" "$@"
}

__sbx_list() {
  local prefix=$1 names
  shift
  [[ $__sbx_locale ]] || builtin unset -v LC_ALL
  builtin mapfile -t names < <(builtin compgen "$@" -- "$prefix" | LC_ALL=C.UTF-8 /usr/bin/sort -u)
  __sbx_candidates=("${names[@]}")
}

__sbx_find_variables() {
  __sbx_base=${BASH_REMATCH[1]}
  __sbx_list "$__sbx_base" -v
  __sbx_candidates=("${__sbx_candidates[@]/%/$1}")
}

__sbx_find() {
  if [[ $__sbx_mode == v ]]; then
    [[ ! $__sbx_word =~ ^[!#]?([A-Za-z_][A-Za-z0-9_]*)?$ ]] || __sbx_find_variables '}'
    return
  fi
  if [[ $__sbx_mode != s && $__sbx_word =~ (^|[^\\])(\\\\)*\$([A-Za-z_][A-Za-z0-9_]*)?$ ]]; then
    BASH_REMATCH=("" "${BASH_REMATCH[3]}")
    __sbx_find_variables ''
    return
  fi
  if [[ $__sbx_word =~ ^(--[A-Za-z0-9-]+|[A-Za-z_][A-Za-z0-9_]*\+?)=(.*)$ ]]; then
    __sbx_word=${BASH_REMATCH[2]}
    [[ $BASH_REMATCH == -* || $__sbx_word == *[\'\"]* ]] || __sbx_word=${__sbx_word##*:}
    __sbx_find_files
  elif [[ $__sbx_is_target ]]; then
    __sbx_find_files
  elif [[ $__sbx_is_first ]]; then
    if [[ $__sbx_word == */* || $__sbx_word == [\"\'~]* ]]; then __sbx_find_files x; else __sbx_find_names -c; fi
  elif [[ $__sbx_word != -* ]]; then
    __sbx_find_arguments
  fi
}

__sbx_find_arguments() {
  case $__sbx_command in
    cd | pushd | rmdir) __sbx_find_files d ;;
    export | readonly | local | read | unset | declare | typeset)
      __sbx_find_names -v -A function
      ;;
    type | which | command | exec | env | nohup | xargs | hash | man)
      if [[ $__sbx_word == */* ]]; then __sbx_find_files; else __sbx_find_names -c; fi
      ;;
    alias | unalias) __sbx_find_names -a ;;
    builtin | enable) __sbx_find_names -b ;;
    help) __sbx_find_names -A helptopic ;;
    shopt) __sbx_find_names -A shopt ;;
    trap) __sbx_find_names -A signal ;;
    *) __sbx_find_files ;;
  esac
}

# The UTF-16 units of $1, with LC_ALL=C: every character, and again each beyond U+FFFF.
__sbx_units() {
  local text=$1 far
  if [[ $text == *[$'\x80'-$'\xff']* ]]; then
    text=${text//[$'\x80'-$'\xbf']/}
    far=${text//[!$'\xf0'-$'\xf7']/}
    text+=$far
  fi
  __sbx_found=${#text}
}

__sbx_base=
if __sbx_scan; then
  __sbx_find
fi
LC_ALL=C
__sbx_units "${__sbx_code%"$__sbx_base"}"
# The answer fits into what the agent passes on.
__sbx_left=30000
for __sbx_name in "${__sbx_candidates[@]::1000}"; do
  [[ $__sbx_name != __sbx_* && $__sbx_name != *[[:cntrl:]]* ]] || continue
  __sbx_name=${__sbx_name//'\'/'\\'}
  __sbx_name=${__sbx_name//'"'/'\"'}
  (((__sbx_left -= ${#__sbx_name} + 3) > 0)) || break
  __sbx_json+=",\"$__sbx_name\""
done
. /run/sbx/answer.sh "{\"start\":$__sbx_found,\"candidates\":[${__sbx_json:1}]}"
