# bash completion for sbx; made by `sbx completions bash`.
_sbx() {
    local cur prev command words options values files line
    cur=${COMP_WORDS[COMP_CWORD]}
    prev=${COMP_WORDS[COMP_CWORD-1]}
    # bash takes "--option=value" apart at "=".
    if [ "$cur" = "=" ]; then
        cur=
    elif [ "$prev" = "=" ]; then
        prev=${COMP_WORDS[COMP_CWORD-2]}
    fi
    command=run words= options= values= files=
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="run session prefetch images cache doctor serve completions"
    else
        case "${COMP_WORDS[1]}" in
        run|session|prefetch|images|cache|doctor|serve|completions) command=${COMP_WORDS[1]} ;;
        esac
    fi
    if [ "$COMP_CWORD" -gt 2 ]; then
        case "$command ${COMP_WORDS[2]}" in
        "images build"|"images list"|"images verify"|"images remove"|"cache ls"|"cache prune"|"cache clear") command="$command ${COMP_WORDS[2]}" ;;
        esac
    fi
    case "$command" in
    "run")
        options="-l --language -c --code -p --package --upgrade --no-validation --no-preload -t --timeout -m --memory -e --env --network --allow-domain --expose --network-log --network-observe --upload --download --json -q --quiet --debug --no-serve -j --jobs -h --help -V --version"
        files=1
        case "$prev" in
        -l|--language) values="python javascript raw py js ts sh bash" ;;
        -c|--code) values=- ;;
        -p|--package) values=- ;;
        -t|--timeout) values=- ;;
        -m|--memory) values=- ;;
        -e|--env) values=- ;;
        --allow-domain) values=- ;;
        --expose) values=- ;;
        --network-log) files=1 words= ;;
        --upload) files=1 words= ;;
        --download) values=- ;;
        -j|--jobs) values=- ;;
        esac
        ;;
    "session")
        options="-l --language -p --package --upgrade --no-validation --no-preload -t --timeout -m --memory -e --env --network --allow-domain --expose --network-log --upload --shell --json -q --quiet --debug --no-serve -h --help -V --version"
        case "$prev" in
        -l|--language) values="python javascript raw py js ts sh bash" ;;
        -p|--package) values=- ;;
        -t|--timeout) values=- ;;
        -m|--memory) values=- ;;
        -e|--env) values=- ;;
        --allow-domain) values=- ;;
        --expose) values=- ;;
        --network-log) files=1 words= ;;
        --upload) files=1 words= ;;
        esac
        ;;
    "prefetch")
        options="--arch -l --language -p --package --upgrade --no-validation --no-preload -m --memory -q --quiet -h --help -V --version"
        case "$prev" in
        --arch) values="x86_64 aarch64" ;;
        -l|--language) values="python javascript raw py js ts sh bash" ;;
        -p|--package) values=- ;;
        -m|--memory) values=- ;;
        esac
        ;;
    "images")
        options="-h --help -V --version"
        words="$words build list verify remove"
        ;;
    "cache")
        options="-h --help -V --version"
        words="$words ls prune clear"
        ;;
    "doctor")
        options="--json -h --help -V --version"
        ;;
    "serve")
        options="--warm --status --stop --install --uninstall --json -q --quiet --debug -h --help -V --version"
        case "$prev" in
        --warm) values=- ;;
        esac
        ;;
    "completions")
        options="-h --help -V --version"
        words="$words bash zsh fish"
        ;;
    "images build")
        options="-l --language --source --python-catalog --force -q --quiet -h --help -V --version"
        case "$prev" in
        -l|--language) values="python javascript raw py js ts sh bash" ;;
        --source) files=1 words= ;;
        --python-catalog) files=1 words= ;;
        esac
        ;;
    "images list")
        options="--json -h --help -V --version"
        ;;
    "images verify")
        options="--json -q --quiet -h --help -V --version"
        ;;
    "images remove")
        options="-h --help -V --version"
        ;;
    "cache ls")
        options="--packages --json -h --help -V --version"
        ;;
    "cache prune")
        options="--unused-for -n --dry-run --json -h --help -V --version"
        case "$prev" in
        --unused-for) values=- ;;
        esac
        ;;
    "cache clear")
        options="-n --dry-run --json -h --help -V --version"
        words="$words templates layers checkpoints images"
        ;;
    esac
    COMPREPLY=()
    if [ "$values" = - ]; then
        return
    elif [ -n "$values" ]; then
        words=$values files=
    elif [ "${cur#-}" != "$cur" ]; then
        words=$options files=
    fi
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
    if [ -n "$files" ]; then
        compopt -o filenames 2>/dev/null
        while IFS= read -r line; do
            COMPREPLY+=("$line")
        done < <(compgen -f -- "$cur")
    fi
}
complete -F _sbx sbx
