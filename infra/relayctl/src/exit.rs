//! How a verb ended, as the shell sees it.

use std::process::ExitCode;

/// Stable exit codes; scripts may depend on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything asked for was done.
    Success = 0,
    /// Nothing, or not what was asked for, was done: a server did not answer, a check failed.
    Failure = 1,
    /// The command line makes no sense (the code clap uses for its own errors too).
    Usage = 2,
    /// The packet, repository, topic, consumer group or record does not exist.
    NotFound = 3,
    /// Some was done and some was refused: packets rejected or skipped, topics that differ.
    Partial = 4,
}

/// The same, for `--help` and the manual page.
pub(crate) const EXIT_CODES: &str = "Exit codes:
  0  everything asked for was done
  1  failure: a server did not answer, or a check did not hold
  2  the command line is wrong
  3  not found: packet, repository, topic, consumer group or record
  4  partial: some packets were rejected or skipped, or topics differ from their specification";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// What a verb's error means for the exit code. Any other error is [`Exit::Failure`].
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// Arguments that parse but contradict each other.
    #[error("{0}")]
    Usage(String),
    /// The thing named on the command line does not exist.
    #[error("{0}")]
    NotFound(String),
}

impl Exit {
    pub(crate) fn of(error: &anyhow::Error) -> Self {
        match error.downcast_ref() {
            Some(Refusal::Usage(_)) => Self::Usage,
            Some(Refusal::NotFound(_)) => Self::NotFound,
            None => Self::Failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn a_refusal_keeps_its_code_under_context() {
        let error = Err::<(), _>(Refusal::NotFound("no topic x".into())).context("tail").unwrap_err();
        assert_eq!(Exit::of(&error), Exit::NotFound);
        assert_eq!(Exit::of(&anyhow::anyhow!("broker down")), Exit::Failure);
    }
}
