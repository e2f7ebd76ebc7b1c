# Bash reads this before Spark's launcher scripts (BASH_ENV). The launcher asks Java for a module that only MLlib uses, of which
# Java warns at every start, and no setting of Spark's leaves it out.
case $0 in
*/spark-class)
    unset BASH_ENV
    exec() {
        local argument command=()
        for argument; do
            [[ $argument == --add-modules=jdk.incubator.vector ]] || command+=("$argument")
        done
        builtin exec "${command[@]}"
    }
    ;;
esac
