//! How often a supervisor has started `MirrorMaker` again: a file of its own, `{"restarts":N}`, since Kafka does not tell.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct State {
    restarts: u64,
}

/// The count in a supervisor's file; none if there is no such file.
///
/// # Errors
/// If it cannot be read, or is no supervisor's.
pub fn read(file: &Path) -> io::Result<Option<u64>> {
    match fs::read(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        read => Ok(Some(serde_json::from_slice::<State>(&read?)?.restarts)),
    }
}

/// Replaces the count in one step, so that no reader sees half of it.
///
/// # Errors
/// If the file cannot be written.
pub fn write(file: &Path, restarts: u64) -> io::Result<()> {
    let next = file.with_extension("next");
    fs::write(&next, serde_json::to_vec(&State { restarts })?)?;
    fs::rename(next, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_read_as_written_and_unknown_without_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("restarts.json");
        assert_eq!(read(&file).unwrap(), None);
        write(&file, 3).unwrap();
        assert_eq!(read(&file).unwrap(), Some(3));
        assert_eq!(fs::read_to_string(&file).unwrap(), r#"{"restarts":3}"#);
        fs::write(&file, "three").unwrap();
        assert!(read(&file).is_err());
    }
}
