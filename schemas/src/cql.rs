//! The CQL schema and statements, from `cql/`. ScyllaDB and Cassandra 5 accept every one of them.
//!
//! A keyspace is an unquoted CQL identifier; check names from outside against [`KEYSPACE_PATTERN`] first.

/// The keyspace of a deployment, unless configured otherwise.
pub const KEYSPACE: &str = "coderelay";
/// The table.
pub const TABLE: &str = "packets";
/// The table's columns, in the order in which statements bind and yield them.
pub const COLUMNS: [&str; 8] =
    ["repo_id", "day", "packet_id", "content", "metadata", "created_at", "ingested_at", "region"];
/// The `repo_id` of the row by which the processor asks whether the store takes writes; it lives a second. No packet's is so: it has a
/// space.
pub const PROBE_REPO_ID: &str = "coderelay probe";
/// What a keyspace may be called, as a regular expression.
pub const KEYSPACE_PATTERN: &str = "^[a-z][a-z0-9_]{0,47}$";

/// Creates the keyspace if it is missing. `replication_factor` counts replicas per datacenter: 3 in production.
pub fn create_keyspace(keyspace: &str, replication_factor: u32) -> String {
    statement(include_str!("../cql/keyspace.cql"), keyspace)
        .replace("{replication_factor}", &replication_factor.to_string())
}

/// Creates the table if it is missing.
pub fn create_table(keyspace: &str) -> String {
    statement(include_str!("../cql/packets.cql"), keyspace)
}

/// Writes one packet. Binds [`COLUMNS`] and then the record's timestamp in microseconds.
pub fn insert(keyspace: &str) -> String {
    statement(include_str!("../cql/insert.cql"), keyspace)
}

/// Writes a row that is gone after a second, to see whether the store takes writes. Binds what [`insert`] binds.
pub fn probe(keyspace: &str) -> String {
    statement(include_str!("../cql/probe.cql"), keyspace)
}

/// Reads one packet. Binds `repo_id, day, packet_id`; yields [`COLUMNS`].
pub fn select_packet(keyspace: &str) -> String {
    statement(include_str!("../cql/select_packet.cql"), keyspace)
}

/// Reads the packets of one repository and UTC day. Binds `repo_id, day`; yields [`COLUMNS`].
pub fn select_day(keyspace: &str) -> String {
    statement(include_str!("../cql/select_day.cql"), keyspace)
}

/// Reads the key and write time of every packet, for audits: `repo_id, day, packet_id, writetime` in microseconds.
pub fn scan_ids(keyspace: &str) -> String {
    statement(include_str!("../cql/scan_ids.cql"), keyspace)
}

/// Reads the packets of one token range in full, for audits. Binds the token before the range and the last one of it; yields
/// [`COLUMNS`] and the write time, in microseconds.
pub fn scan_rows(keyspace: &str) -> String {
    statement(include_str!("../cql/scan_rows.cql"), keyspace)
}

/// The statement without its comment lines and with the keyspace filled in.
fn statement(template: &str, keyspace: &str) -> String {
    let lines: Vec<&str> = template.lines().filter(|line| !line.starts_with("--")).collect();
    lines.join("\n").replace("{keyspace}", keyspace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_complete() {
        let statements = [
            create_keyspace("ks", 3),
            create_table("ks"),
            insert("ks"),
            probe("ks"),
            select_packet("ks"),
            select_day("ks"),
            scan_ids("ks"),
            scan_rows("ks"),
        ];
        for statement in statements {
            assert!(statement.contains(" ks"), "{statement}");
            assert!(
                !statement.contains("{keyspace}") && !statement.contains("{repl") && !statement.contains("--"),
                "{statement}"
            );
        }
        assert!(create_keyspace("ks", 3).contains("'replication_factor': 3}"));
    }

    #[test]
    fn the_insert_binds_every_column_and_the_timestamp() {
        for insert in [insert(KEYSPACE), probe(KEYSPACE)] {
            assert_eq!(insert.matches('?').count(), COLUMNS.len() + 1);
            for column in COLUMNS {
                assert!(insert.contains(column) && create_table(KEYSPACE).contains(column), "{column}");
            }
        }
    }
}
