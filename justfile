# The commands of this repository. `just` lists them.

_list:
    @just --list

# All tests, or those that the arguments name
test *arguments:
    scripts/test {{arguments}}

# The end-to-end tests of a subject, as in `just e2e crash::`
e2e *filter:
    cargo build --examples
    cargo test --test e2e -- {{filter}}

# Formats and lints
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --all-features --locked -- -D warnings
    scripts/naming

# The gate, as CI runs it
ci:
    .ci/run

# The checks that take too long for each change
release-check *names:
    scripts/release-check {{names}}

# The benchmark of whole fleets
bench *arguments:
    cargo bench --locked --bench fleet -- {{arguments}}

# The fault drill on a private broker
drill *arguments:
    cargo run --release --bin gristmill -- drill {{arguments}}

# Licences, duplicate versions and sources of the dependencies; needs cargo-deny
deny:
    cargo deny --offline check bans licenses sources

# Spelling; needs typos
typos:
    typos
