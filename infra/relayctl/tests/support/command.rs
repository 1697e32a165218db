//! The command line, run inside the test's process.

#![allow(clippy::unwrap_used)] // a test that cannot be set up fails

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use clap::Parser as _;
use relayctl::{Cli, Exit, Output};

/// Runs a command line in this process.
pub(crate) async fn relayctl(arguments: &[&str]) -> (Exit, Vec<u8>) {
    let line = std::iter::once("relayctl").chain(arguments.iter().copied());
    let cli = Cli::try_parse_from(line).unwrap_or_else(|error| panic!("{error}"));
    let sink = Sink::default();
    let mut output = Output::to(cli.format(), sink.clone());
    let exit = relayctl::run(cli, &mut output).await;
    let bytes = sink.0.lock().unwrap().clone();
    (exit, bytes)
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
