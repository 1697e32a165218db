//! Transactions that nobody will end, as Kafka's own tool finds them.

use std::fmt;
use std::io;

use crate::error::{Error, Result};
use crate::stack::Stack;

const TOOL: &str = "org.apache.kafka.tools.TransactionsCommand";

/// A transaction that is open in a partition and that no coordinator knows to be: whoever reads committed records waits there for ever
/// (KIP-664).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HangingTransaction {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// Its first record.
    pub start_offset: i64,
}

impl fmt::Display for HangingTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} from offset {}", self.topic, self.partition, self.start_offset)
    }
}

impl HangingTransaction {
    /// A line of the tool's table: topic, partition, producer's id and epoch, coordinator's epoch, first offset, and two times.
    fn of_line(line: &str, topic: &str) -> Option<Self> {
        let columns: Vec<_> = line.split_whitespace().collect();
        let [name, partition, _, _, _, start, _, _] = columns[..] else { return None };
        let (partition, start_offset) = (partition.parse().ok()?, start.parse().ok()?);
        (name == topic).then(|| Self { topic: topic.to_owned(), partition, start_offset })
    }
}

impl Stack {
    /// What `kafka-transactions.sh find-hanging` finds in `topics`, however short a time it has been open: a JVM for each of them. Of a
    /// stack that is not secured.
    ///
    /// # Errors
    /// What the tool says when it fails.
    pub async fn hanging_transactions(&self, topics: &[&str]) -> Result<Vec<HangingTransaction>> {
        let mut hanging = Vec::new();
        for topic in topics {
            let mut found = self.find_hanging(topic).await?;
            if !found.is_empty() {
                // The tool asks partitions first: one that ended before it asked the coordinator looks the same.
                let still = self.find_hanging(topic).await?;
                found.retain(|transaction| still.contains(transaction));
            }
            hanging.extend(found);
        }
        Ok(hanging)
    }

    async fn find_hanging(&self, topic: &str) -> Result<Vec<HangingTransaction>> {
        let mut tool = tokio::process::Command::from(self.cluster().tool(TOOL));
        tool.args(["--bootstrap-server", &self.bootstrap_servers(), "find-hanging", "--topic", topic]);
        tool.args(["--max-transaction-timeout", "0"]).kill_on_drop(true);
        let output = tool.output().await.map_err(Error::io(TOOL))?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let reason = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
            return Err(Error::io(TOOL)(io::Error::other(reason)));
        }
        Ok(text.lines().filter_map(|line| HangingTransaction::of_line(line, topic)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::HangingTransaction;

    #[test]
    fn a_line_of_the_tools_table_is_read_and_its_head_is_not() {
        let head = "Topic          \tPartition\tProducerId\tProducerEpoch\tCoordinatorEpoch\tStartOffset\tLastTimestamp\tDuration(min)\t";
        let line = "code.deduped.v1\t3        \t1000      \t7            \t0               \t41         \t1764450000000\t1            \t";
        let expected = HangingTransaction { topic: "code.deduped.v1".to_owned(), partition: 3, start_offset: 41 };
        assert_eq!(HangingTransaction::of_line(line, "code.deduped.v1"), Some(expected));
        assert_eq!(HangingTransaction::of_line(head, "code.deduped.v1"), None);
    }
}
