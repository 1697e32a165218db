//! What a task said of itself last, in the status topic. One whose process was killed says nothing.

use std::fmt;

use serde::Deserialize;

/// Connect's states of a task (`AbstractStatus.State`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum TaskState {
    /// It works.
    Running,
    /// It has failed, and stays so until its process or the task itself is started again.
    Failed,
    /// It is about to be.
    Unassigned,
    /// It was told to pause (KIP-52).
    Paused,
    /// It was told to stop (KIP-875).
    Stopped,
    /// It is being started again (KIP-745).
    Restarting,
    /// Any other.
    #[serde(other)]
    Other,
}

/// The value of a task's record.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct TaskStatus {
    /// Its state.
    pub state: TaskState,
    /// The exception it failed with, over many lines.
    trace: Option<String>,
}

impl TaskStatus {
    /// The task that a record is about, for example `MirrorSourceConnector-0`, and what it says; without a value there is no such task any
    /// more. None if the record is about something else.
    pub fn parse<'a>(key: Option<&'a [u8]>, value: Option<&[u8]>) -> Option<(&'a str, Option<Self>)> {
        let name = std::str::from_utf8(key?).ok()?.strip_prefix("status-task-")?;
        Some((name, value.and_then(|value| serde_json::from_slice(value).ok())))
    }

    /// The first line of the exception it failed with.
    pub fn error(&self) -> Option<&str> {
        self.trace.as_deref()?.lines().next()
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Running => "RUNNING",
            Self::Failed => "FAILED",
            Self::Unassigned => "UNASSIGNED",
            Self::Paused => "PAUSED",
            Self::Stopped => "STOPPED",
            Self::Restarting => "RESTARTING",
            Self::Other => "OTHER",
        })
    }
}

/// The state, and the error where there is one.
impl fmt::Display for TaskStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.error() {
            Some(error) => write!(formatter, "{}: {error}", self.state),
            None => self.state.fmt(formatter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Option<&[u8]> = Some(b"status-task-MirrorSourceConnector-0");

    #[test]
    fn a_task_says_its_state_and_the_first_line_of_its_error() {
        let (name, status) = TaskStatus::parse(KEY, Some(br#"{"state":"FAILED","trace":"big\n\tat A"}"#)).unwrap();
        let status = status.unwrap();
        assert_eq!((name, status.state), ("MirrorSourceConnector-0", TaskState::Failed));
        assert_eq!(status.to_string(), "FAILED: big");
        let (_, status) = TaskStatus::parse(KEY, Some(br#"{"state":"RUNNING","trace":null}"#)).unwrap();
        assert_eq!(status.unwrap().to_string(), "RUNNING");
    }

    #[test]
    fn without_a_value_there_is_no_such_task_and_connectors_are_none() {
        assert_eq!(TaskStatus::parse(KEY, None), Some(("MirrorSourceConnector-0", None)));
        assert_eq!(TaskStatus::parse(Some(b"status-connector-MirrorSourceConnector"), Some(b"{}")), None);
    }
}
