//! Detection of unknown `GRISTMILL_…` variables: a misspelt name would otherwise silently leave the
//! default.

use super::settings::{FILE_SUFFIX, Settings};
use crate::cli::nearest_name;

const VARIABLE_PREFIX: &str = "GRISTMILL_";
/// Names, or patterns of names, that tests, scripts and the files for Docker Compose use in the
/// same environment.
const FOREIGN_NAMES: [&str; 17] = [
    "TEST_*",
    "HOLD_A_BROKER",
    "FAIL_POINT",
    "RABBITMQ_*",
    "ERLANG_COOKIE",
    "USER",
    "IMAGE",
    "ADDRESS",
    "SCHEME",
    "TLS_ADDRESS",
    "CERTIFICATES",
    "*_MEMORY",
    "*_CPUS",
    "OPERATOR_PASSWORD",
    "PRODUCER_PASSWORD",
    "WORKER_PASSWORD",
    "SINK_PASSWORD",
];

/// Returns a warning for each variable with the prefix that is neither a setting nor in
/// [`FOREIGN_NAMES`].
pub(super) fn unknown_variables(settings: &Settings, names: impl Iterator<Item = String>) -> Vec<String> {
    let known: Vec<String> = settings.variables();
    let keys = || known.iter().filter_map(|known| known.strip_prefix(VARIABLE_PREFIX));
    let mut unknown: Vec<_> = names
        .filter_map(|name| Some(name.strip_prefix(VARIABLE_PREFIX)?.to_owned()))
        .filter(|name| {
            !keys().any(|key| key == name) && !FOREIGN_NAMES.iter().any(|other| matches_pattern(other, name))
        })
        .collect();
    unknown.sort(); // the environment is unordered
    let warnings = unknown.iter().map(|name| {
        let hint = match nearest_name(keys(), name) {
            Some(near) => format!("; did you mean {VARIABLE_PREFIX}{near}?"),
            None => " (hint: --help names the variable of each flag)".into(),
        };
        format!("the environment has {VARIABLE_PREFIX}{name}, which is no setting{hint}")
    });
    warnings.collect()
}

fn matches_pattern(pattern: &str, name: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(end), _) => name.ends_with(end),
        (None, Some(start)) => name.starts_with(start),
        (None, None) => name == pattern,
    }
}

impl Settings {
    /// Returns the names of all known variables, including those that name files with secrets.
    fn variables(&self) -> Vec<String> {
        let all = self.all.iter().flat_map(|setting| {
            let variable = setting.variable();
            let file = setting.is_secret().then(|| variable.clone() + FILE_SUFFIX);
            [Some(variable), file].into_iter().flatten()
        });
        all.chain([format!("{VARIABLE_PREFIX}CONFIG")]).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use super::*;
    use crate::{App, Role, cli::kinds::Kinds};

    fn warnings(names: impl IntoIterator<Item = String>) -> Vec<String> {
        let (kinds, _, transports) = App::with_built_in_jobs().0.into_parts().unwrap();
        let whole = crate::cli::command(Role::All, &Kinds(kinds), &transports, "1");
        let settings = Settings::from_command(&whole);
        unknown_variables(&settings, names.into_iter())
    }

    #[test]
    fn misspelt_variable_is_reported() {
        for known in ["GRISTMILL_BROKER", "GRISTMILL_PASSWORD_FILE", "GRISTMILL_CONFIG", "PATH", "BROKR"] {
            assert_eq!(warnings([known.into()]), <[String; 0]>::default());
        }
        let [slots, broker] = &warnings(["GRISTMILL_BROKR".into(), "GRISTMILL_1".into()])[..] else {
            panic!()
        };
        assert!(slots.contains("GRISTMILL_1, which is no setting (hint: --help"), "{slots}");
        assert!(
            broker.contains("GRISTMILL_BROKR, which is no setting; did you mean GRISTMILL_BROKER?"),
            "{broker}"
        );
        // Only a secret may be in a file of its own.
        assert_eq!(warnings(["GRISTMILL_LANE_FILE".into()]).len(), 1);
    }

    #[test]
    fn variables_in_own_files_are_known() {
        let house = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut names = BTreeSet::new();
        for file in [
            ".env.example",
            "docker-compose.yml",
            "deploy/compose.users.yml",
            "deploy/compose.tls.yml",
            "deploy/compose.cluster.yml",
            "deploy/systemd/gristmill-sink@.service",
            "deploy/systemd/gristmill-worker@.service",
            "deploy/kubernetes/sink.yaml",
            "deploy/kubernetes/worker.yaml",
            "scripts/test",
            "scripts/test-compose",
        ] {
            let text = std::fs::read_to_string(house.join(file)).unwrap();
            let words = text.split(|char: char| !(char.is_ascii_uppercase() || char == '_'));
            names.extend(
                words
                    .filter(|word| word.starts_with(VARIABLE_PREFIX) && *word != VARIABLE_PREFIX)
                    .map(str::to_owned),
            );
        }
        assert!(names.len() > 15, "{names:?}");
        assert_eq!(warnings(names), <[String; 0]>::default());
    }
}
