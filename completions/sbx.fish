# fish completion for sbx; made by `sbx completions fish`.

# The command that is being typed; a first word that is no command means run.
function __sbx_command
    set -l words (commandline -opc)
    set -e words[1]
    switch "$words[1]"
        case run session prefetch images cache doctor serve completions
            switch "$words[1] $words[2]"
                case 'images build' 'images list' 'images verify' 'images remove' 'cache ls' 'cache prune' 'cache clear'
                    echo "$words[1] $words[2]"
                case '*'
                    echo $words[1]
            end
        case '*'
            echo run
    end
end

function __sbx_is
    test (__sbx_command) = "$argv"
end

function __sbx_is_first
    test (count (commandline -opc)) -eq 1
end

complete -c sbx -f
complete -c sbx -n __sbx_is_first -a run -d 'run one or more sources, each in its own VM, concurrently (the default command)'
complete -c sbx -n '__sbx_is run' -s l -l language -x -a 'python javascript raw py js ts sh bash' -d 'python, javascript or raw (also py, js, ts, sh, bash); default: from the file\'s extension, else python'
complete -c sbx -n '__sbx_is run' -s c -l code -x -d 'inline code, repeatable; runs before the positional sources'
complete -c sbx -n '__sbx_is run' -s t -l timeout -x -d 'seconds the code may run, 1-300; default 30'
complete -c sbx -n '__sbx_is run' -s m -l memory -x -d 'memory of the VM in MB (2^20 bytes), at least 128; default 256'
complete -c sbx -n '__sbx_is run' -s e -l env -x -d 'environment variable for the code, repeatable'
complete -c sbx -n '__sbx_is run' -l network -d 'allow outbound network, but for private and other special addresses; default: none'
complete -c sbx -n '__sbx_is run' -l allow-domain -x -d 'allow this domain and nothing else: api.example.com, *.example.com or db.example.com:5432; repeatable'
complete -c sbx -n '__sbx_is run' -l expose -x -d 'make a port of the VM reachable on 127.0.0.1: PORT[:HOST_PORT][/udp], by default on a free port; repeatable'
complete -c sbx -n '__sbx_is run' -l network-log -r -F -d 'append a line of JSON for each name asked for and each connection made or refused'
complete -c sbx -n '__sbx_is run' -l network-observe -d 'allow outbound network and say at the end which --allow-domain options would have been enough'
complete -c sbx -n '__sbx_is run' -l upload -r -F -d 'file or directory to put below /home/user before the code starts, repeatable'
complete -c sbx -n '__sbx_is run' -l download -x -d 'file or directory to fetch when the code has ended, repeatable; LOCAL - is standard output'
complete -c sbx -n '__sbx_is run' -l json -d 'print a machine-readable result on standard output'
complete -c sbx -n '__sbx_is run' -s q -l quiet -d 'show no progress'
complete -c sbx -n '__sbx_is run' -l debug -d 'stream boot and agent logs to standard error'
complete -c sbx -n '__sbx_is run' -l no-serve -d 'start the VM in this process, also where a server of sbx serve runs'
complete -c sbx -n '__sbx_is run' -s j -l jobs -x -d 'how many sources run at once; default: as many as the host admits'
complete -c sbx -n '__sbx_is run' -s h -l help -d 'show this help'
complete -c sbx -n '__sbx_is run' -s V -l version -d 'show the version'
complete -c sbx -n '__sbx_is run' -F
complete -c sbx -n __sbx_is_first -a session -d 'type code at a prompt, on one VM that is kept; or run standard input block by block'
complete -c sbx -n '__sbx_is session' -s l -l language -x -a 'python javascript raw py js ts sh bash' -d 'python, javascript or raw (also py, js, ts, sh, bash); default python'
complete -c sbx -n '__sbx_is session' -s t -l timeout -x -d 'seconds each block may run, 1-300; default 30, at a prompt 300'
complete -c sbx -n '__sbx_is session' -s m -l memory -x -d 'memory of the VM in MB (2^20 bytes), at least 128; default 256'
complete -c sbx -n '__sbx_is session' -s e -l env -x -d 'environment variable for the code, repeatable'
complete -c sbx -n '__sbx_is session' -l network -d 'allow outbound network, but for private and other special addresses; default: none'
complete -c sbx -n '__sbx_is session' -l allow-domain -x -d 'allow this domain and nothing else: api.example.com, *.example.com or db.example.com:5432; repeatable'
complete -c sbx -n '__sbx_is session' -l expose -x -d 'make a port of the VM reachable on 127.0.0.1: PORT[:HOST_PORT][/udp], by default on a free port; repeatable'
complete -c sbx -n '__sbx_is session' -l network-log -r -F -d 'append a line of JSON for each name asked for and each connection made or refused'
complete -c sbx -n '__sbx_is session' -l upload -r -F -d 'file or directory to put below /home/user before the code starts, repeatable'
complete -c sbx -n '__sbx_is session' -l shell -d 'open a shell in the VM instead of a prompt'
complete -c sbx -n '__sbx_is session' -l json -d 'read standard input and print a machine-readable result of each block, one on a line'
complete -c sbx -n '__sbx_is session' -s q -l quiet -d 'show no progress and no welcome'
complete -c sbx -n '__sbx_is session' -l debug -d 'stream boot and agent logs to standard error'
complete -c sbx -n '__sbx_is session' -l no-serve -d 'start the VM in this process, also where a server of sbx serve runs'
complete -c sbx -n '__sbx_is session' -s h -l help -d 'show this help'
complete -c sbx -n '__sbx_is session' -s V -l version -d 'show the version'
complete -c sbx -n __sbx_is_first -a prefetch -d 'download and verify the images, then make the start templates for this host'
complete -c sbx -n '__sbx_is prefetch' -l arch -x -a 'x86_64 aarch64' -d 'images of x86_64 or aarch64; default: this host\'s own'
complete -c sbx -n '__sbx_is prefetch' -s q -l quiet -d 'show no progress'
complete -c sbx -n '__sbx_is prefetch' -s h -l help -d 'show this help'
complete -c sbx -n '__sbx_is prefetch' -s V -l version -d 'show the version'
complete -c sbx -n __sbx_is_first -a images -d 'build, list, verify or remove the kernel, root file systems and programs that machines are made of'
complete -c sbx -n '__sbx_is images' -a build -d 'build the images from source, and the start templates on top'
complete -c sbx -n '__sbx_is images build' -s l -l language -x -a 'python javascript raw py js ts sh bash' -d 'build the image of this language alone, repeatable; default: all'
complete -c sbx -n '__sbx_is images build' -l source -r -F -d 'a checkout of sbx; default: the sources that this program carries'
complete -c sbx -n '__sbx_is images build' -l python-catalog -r -F -d 'names of the Python packages that may be installed, most used first; default: what Debian packages'
complete -c sbx -n '__sbx_is images build' -l force -d 'build everything anew, with the newest packages'
complete -c sbx -n '__sbx_is images build' -s q -l quiet -d 'show no progress'
complete -c sbx -n '__sbx_is images build' -s h -l help -d 'show this help'
complete -c sbx -n '__sbx_is images build' -s V -l version -d 'show the version'
complete -c sbx -n '__sbx_is images' -a list -d 'list the images with size, hash and the versions inside'
complete -c sbx -n '__sbx_is images list' -l json -d 'print a machine-readable list'
complete -c sbx -n '__sbx_is images list' -s h -l help -d 'show this help'
complete -c sbx -n '__sbx_is images list' -s V -l version -d 'show the version'
complete -c sbx -n '__sbx_is images' -a verify -d 'compare every byte of the images with their manifest'
complete -c sbx -n '__sbx_is images verify' -l json -d 'print a machine-readable result'
complete -c sbx -n '__sbx_is images verify' -s q -l quiet -d 'show no progress'
complete -c sbx -n '__sbx_is images verify' -s h -l help -d 'show this help'
complete -c sbx -n '__sbx_is images verify' -s V -l version -d 'show the version'
complete -c sbx -n '__sbx_is images' -a remove -d 'remove the images'
complete -c sbx -n '__sbx_is images remove' -s h -l help -d 'show this help'
complete -c sbx -n '__sbx_is images remove' -s V -l version -d 'show the version'
complete -c sbx -n __sbx_is_first -a cache -d 'list or remove what is kept: start templates, installed packages, checkpoints and images'
complete -c sbx -n '__sbx_is cache' -a ls -d 'list start templates, package layers, named checkpoints and images with their sizes'
complete -c sbx -n '__sbx_is cache ls' -l packages -d 'show every package that a layer has, with its version'
complete -c sbx -n '__sbx_is cache ls' -l json -d 'print a machine-readable list'
complete -c sbx -n '__sbx_is cache ls' -s h -l help -d 'show this help'
complete -c sbx -n '__sbx_is cache ls' -s V -l version -d 'show the version'
complete -c sbx -n '__sbx_is cache' -a prune -d 'remove what dead processes left, what is damaged, and templates and layers that were not used lately'
complete -c sbx -n '__sbx_is cache prune' -l unused-for -x -d 'what counts as lately; default: 30'
complete -c sbx -n '__sbx_is cache prune' -s n -l dry-run -d 'say what would be removed, and remove nothing'
complete -c sbx -n '__sbx_is cache prune' -l json -d 'print a machine-readable list'
complete -c sbx -n '__sbx_is cache prune' -s h -l help -d 'show this help'
complete -c sbx -n '__sbx_is cache prune' -s V -l version -d 'show the version'
complete -c sbx -n '__sbx_is cache' -a clear -d 'remove all of a kind: templates and layers, which are made anew when they are wanted, unless KIND says otherwise'
complete -c sbx -n '__sbx_is cache clear' -s n -l dry-run -d 'say what would be removed, and remove nothing'
complete -c sbx -n '__sbx_is cache clear' -l json -d 'print a machine-readable list'
complete -c sbx -n '__sbx_is cache clear' -s h -l help -d 'show this help'
complete -c sbx -n '__sbx_is cache clear' -s V -l version -d 'show the version'
complete -c sbx -n '__sbx_is cache clear' -a 'templates layers checkpoints images'
complete -c sbx -n __sbx_is_first -a doctor -d 'check accelerator, QEMU, images, confinement, cgroups and network; say what mends what is missing'
complete -c sbx -n '__sbx_is doctor' -l json -d 'print machine-readable findings'
complete -c sbx -n '__sbx_is doctor' -s h -l help -d 'show this help'
complete -c sbx -n '__sbx_is doctor' -s V -l version -d 'show the version'
complete -c sbx -n __sbx_is_first -a serve -d 'keep VMs warm, and lend them to sbx run, sbx session and programs over a private socket'
complete -c sbx -n '__sbx_is serve' -l warm -x -d 'ready VMs kept per language; default 1'
complete -c sbx -n '__sbx_is serve' -l status -d 'show the server that runs; the exit status is 1 when none does'
complete -c sbx -n '__sbx_is serve' -l stop -d 'end the server that runs, and its VMs'
complete -c sbx -n '__sbx_is serve' -l install -d 'have the user\'s service manager (systemd, launchd) start the server from now on, with these options'
complete -c sbx -n '__sbx_is serve' -l uninstall -d 'undo --install'
complete -c sbx -n '__sbx_is serve' -l json -d 'print a machine-readable status'
complete -c sbx -n '__sbx_is serve' -s q -l quiet -d 'log warnings and errors only'
complete -c sbx -n '__sbx_is serve' -l debug -d 'log everything'
complete -c sbx -n '__sbx_is serve' -s h -l help -d 'show this help'
complete -c sbx -n '__sbx_is serve' -s V -l version -d 'show the version'
complete -c sbx -n __sbx_is_first -a completions -d 'print a completion script for bash, zsh or fish'
complete -c sbx -n '__sbx_is completions' -s h -l help -d 'show this help'
complete -c sbx -n '__sbx_is completions' -s V -l version -d 'show the version'
complete -c sbx -n '__sbx_is completions' -a 'bash zsh fish'
