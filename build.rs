//! Names the build of this package's programs by a hash of all their sources.
//!
//! The programs are several executables of one build, and their bytes differ. The hash of an
//! executable, which names the build of any other program, would tell them apart.

use std::{
    fs,
    hash::{DefaultHasher, Hasher as _},
    io,
    path::{Path, PathBuf},
};

/// The sources of the programs, and the versions of the crates that they use.
const SOURCE_PATHS: [&str; 15] = [
    "Cargo.lock",
    "Cargo.toml",
    "src",
    "shared/src",
    "process/src",
    "producer/src",
    "worker/src",
    "sink/src",
    "ledgers/contract/src",
    "ledgers/sqlite/src",
    "transports/amqp/src",
    "jobs/src",
    "observe/src",
    "drill/src",
    "test-support/src",
];

fn main() -> io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut hasher = DefaultHasher::new();
    for source in SOURCE_PATHS {
        println!("cargo::rerun-if-changed={source}");
        hash(&root.join(source), &mut hasher)?;
    }
    println!("cargo::rustc-env=GRISTMILL_BUILD={:016x}", hasher.finish());
    Ok(())
}

/// Hashes a file, or all files of a folder in the order of their names. A missing file counts as
/// empty: a package that another one depends on has no lock file of its own.
fn hash(path: &Path, hasher: &mut DefaultHasher) -> io::Result<()> {
    if path.is_dir() {
        let entries = fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path()));
        let mut entries = entries.collect::<io::Result<Vec<PathBuf>>>()?;
        entries.sort();
        return entries.iter().try_for_each(|entry| hash(entry, hasher));
    }
    match fs::read(path) {
        Ok(bytes) => {
            hasher.write(path.file_name().unwrap_or_default().as_encoded_bytes());
            hasher.write(&bytes);
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
