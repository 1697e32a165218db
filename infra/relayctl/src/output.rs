//! Results for people (tables, lines) or programs (JSON), to standard output or a buffer.

use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, TableComponent, presets};
use serde::Serialize;

/// What standard output carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Tables and aligned lines.
    #[default]
    Table,
    /// JSON: one document, or one object a line where the verb streams.
    Json,
}

/// One line of a table and, serialised, one JSON object.
pub(crate) trait Row: Serialize {
    /// Column titles.
    const HEADER: &'static [&'static str];
    /// One cell a column.
    fn cells(&self) -> Vec<String>;
}

/// Where a verb writes its result.
pub struct Output {
    format: Format,
    colour: bool,
    width: Option<u16>,
    sink: Box<dyn Write + Send>,
}

impl Output {
    /// Standard output.
    pub fn stdout(format: Format) -> Self {
        Self { format, colour: is_colourful(&io::stdout()), width: None, sink: Box::new(io::stdout()) }
    }

    /// Any other sink, without colours: for tests and embedding.
    pub fn to(format: Format, sink: impl Write + Send + 'static) -> Self {
        Self { format, colour: false, width: Some(200), sink: Box::new(sink) }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// A finished list: one table, or one JSON array.
    pub(crate) fn list<R: Row>(&mut self, rows: &[R]) -> io::Result<()> {
        if self.is_json() {
            return self.document(&rows);
        }
        if rows.is_empty() {
            return Ok(());
        }
        let mut table = self.table();
        table.set_header(R::HEADER);
        table.add_rows(rows.iter().map(Row::cells));
        self.line(&table.to_string())
    }

    /// One of many results as it comes: a line of cells, or a JSON object on one line.
    pub(crate) fn stream<R: Row>(&mut self, row: &R) -> io::Result<()> {
        if self.is_json() { self.json_line(row) } else { self.line(row.cells().join("  ").trim_end()) }
    }

    /// One JSON document over several lines.
    pub(crate) fn document(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut self.sink, value)?;
        writeln!(self.sink)
    }

    /// One JSON object on one line.
    pub(crate) fn json_line(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.sink, value)?;
        writeln!(self.sink)
    }

    /// A sentence for people; programs do not get it.
    pub(crate) fn say(&mut self, text: &str) -> io::Result<()> {
        if self.is_json() { Ok(()) } else { self.line(text) }
    }

    /// Bytes as they are: file contents, completions, manual pages.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sink.write_all(bytes)?;
        self.sink.flush()
    }

    /// An empty table in the house style.
    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_style(TableComponent::HeaderLines, '─').set_style(TableComponent::MiddleHeaderIntersections, '─');
        if let Some(width) = self.width {
            table.set_width(width);
        }
        if self.colour {
            table.enforce_styling()
        } else {
            table.force_no_tty()
        };
        table
    }

    fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.sink, "{text}")
    }
}

/// Whether to write in colours: on a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
pub fn is_colourful(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// `1 packet`, `2 packets`.
pub(crate) fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Bytes as people read them: `1.5 KiB`.
pub(crate) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// A sink whose bytes can be looked at afterwards.
    #[derive(Clone, Default)]
    pub(crate) struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Captured {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[derive(Serialize)]
    struct Pair {
        name: &'static str,
        count: u64,
    }

    impl Row for Pair {
        const HEADER: &'static [&'static str] = &["name", "count"];
        fn cells(&self) -> Vec<String> {
            vec![self.name.to_owned(), self.count.to_string()]
        }
    }

    #[test]
    fn the_same_rows_are_a_table_or_json() {
        let rows = [Pair { name: "a", count: 1 }, Pair { name: "b", count: 2 }];

        let people = Captured::default();
        Output::to(Format::Table, people.clone()).list(&rows).unwrap();
        assert!(people.text().contains("name") && people.text().contains('2'), "{}", people.text());

        let programs = Captured::default();
        Output::to(Format::Json, programs.clone()).list(&rows).unwrap();
        let parsed: serde_json::Value = serde_json::from_str(&programs.text()).unwrap();
        assert_eq!(parsed[1]["count"], 2);
    }

    #[test]
    fn streamed_json_is_one_object_a_line() {
        let sink = Captured::default();
        let mut output = Output::to(Format::Json, sink.clone());
        for count in 0..3 {
            output.stream(&Pair { name: "x", count }).unwrap();
            output.say("for people only").unwrap();
        }
        assert_eq!(sink.text().lines().count(), 3);
    }
}
