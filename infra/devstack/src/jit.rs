//! How far the servers' JVMs compile their code.

/// What a server's JVM spends on compiling itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Jit {
    /// Little: its first compiler alone (C1). Kafka and Cassandra start for about half the CPU time.
    #[default]
    Quick,
    /// What production spends: for what is measured, or stays.
    Full,
}

impl Jit {
    /// The option of `java` for it.
    pub(crate) fn option(self) -> Option<&'static str> {
        match self {
            Self::Quick => Some("-XX:TieredStopAtLevel=1"),
            Self::Full => None,
        }
    }
}
