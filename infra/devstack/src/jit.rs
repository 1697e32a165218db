//! How far the servers' JVMs compile their code.

/// What a server's JVM spends on compiling itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Jit {
    /// Little: its first compiler alone (C1). It starts for half the CPU time, which is most of what a short test takes.
    #[default]
    Quick,
    /// What production spends, a core for the first minute. What is measured, or stays, gains by it.
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
