//! Variables that look like settings of ours and are none: a slip of the pen would otherwise become a default in silence.

use super::{
    nearest,
    settings::{FILE_SUFFIX, Settings},
};

const PREFIX: &str = "GRISTMILL_";
/// Names, or how they begin or end, that are for others: our tests, our scripts and the files for Docker Compose. They share
/// the environment.
const OF_OTHERS: [&str; 17] = [
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

/// What is to be said of those names of variables that are ours by their beginning, and mean nothing.
pub(super) fn unknown(settings: &Settings, names: impl Iterator<Item = String>) -> Vec<String> {
    let known: Vec<String> = settings.variables();
    let keys = || known.iter().filter_map(|known| known.strip_prefix(PREFIX));
    let mut unknown: Vec<_> = names
        .filter_map(|name| Some(name.strip_prefix(PREFIX)?.to_owned()))
        .filter(|name| !keys().any(|key| key == name) && !OF_OTHERS.iter().any(|other| fits(other, name)))
        .collect();
    unknown.sort(); // the environment has no order
    let told = unknown.iter().map(|name| {
        let hint = match nearest(keys(), name) {
            Some(near) => format!("; did you mean {PREFIX}{near}?"),
            None => " (hint: --help names the variable of each flag)".into(),
        };
        format!("the environment has {PREFIX}{name}, which is no setting{hint}")
    });
    told.collect()
}

fn fits(pattern: &str, name: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(end), _) => name.ends_with(end),
        (None, Some(start)) => name.starts_with(start),
        (None, None) => name == pattern,
    }
}

impl Settings {
    /// The variables that mean something, those that name files with secrets too.
    fn variables(&self) -> Vec<String> {
        let all = self.all.iter().flat_map(|setting| {
            let variable = setting.variable();
            let file = setting.is_secret().then(|| variable.clone() + FILE_SUFFIX);
            [Some(variable), file].into_iter().flatten()
        });
        all.chain([format!("{PREFIX}CONFIG")]).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use super::*;
    use crate::{App, Role, cli::kinds::Kinds};

    fn told(names: impl IntoIterator<Item = String>) -> Vec<String> {
        let (kinds, _) = App::with_built_in_jobs().into_parts().unwrap();
        let settings = Settings::of(&crate::cli::command(Role::All, &Kinds(kinds), "1"));
        unknown(&settings, names.into_iter())
    }

    #[test]
    fn a_slip_of_the_pen_is_told_and_what_is_known_or_of_others_is_not() {
        for known in ["GRISTMILL_BROKER", "GRISTMILL_PASSWORD_FILE", "GRISTMILL_CONFIG", "PATH", "BROKR"] {
            assert_eq!(told([known.into()]), <[String; 0]>::default());
        }
        let [slots, broker] = &told(["GRISTMILL_BROKR".into(), "GRISTMILL_1".into()])[..] else { panic!() };
        assert!(slots.contains("GRISTMILL_1, which is no setting (hint: --help"), "{slots}");
        assert!(
            broker.contains("GRISTMILL_BROKR, which is no setting; did you mean GRISTMILL_BROKER?"),
            "{broker}"
        );
        // Only a secret may be in a file of its own.
        assert_eq!(told(["GRISTMILL_LANE_FILE".into()]).len(), 1);
    }

    #[test]
    fn what_the_files_of_this_house_set_is_known() {
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
            names.extend(words.filter(|word| word.starts_with(PREFIX) && *word != PREFIX).map(str::to_owned));
        }
        assert!(names.len() > 15, "{names:?}");
        assert_eq!(told(names), <[String; 0]>::default());
    }
}
