//! The second way to a stack's brokers, on which clients are mistreated.

use super::Stack;
use crate::link::{Interception, Link, Rule};

impl Stack {
    /// [`bootstrap_servers`](Self::bootstrap_servers) by the way that can be [cut](Self::cut), if the stack was built
    /// [`linked`](super::Builder::linked); else the only way there is.
    pub fn linked_servers(&self) -> String {
        self.cluster.linked_servers().unwrap_or_else(|| self.bootstrap_servers())
    }

    /// Cuts the way of [`linked_servers`](Self::linked_servers): connections stay open and nothing comes through.
    pub fn cut(&self) {
        self.links.iter().for_each(Link::cut);
    }

    /// Heals it. What was under way arrives late.
    pub fn heal(&self) {
        self.links.iter().for_each(Link::heal);
    }

    /// Mistreats chosen requests of the clients that come by [`linked_servers`](Self::linked_servers), as long as the result is kept. Of
    /// several rules that apply to a request the oldest has it, and the others do not count it.
    ///
    /// ```no_run
    /// # async fn test(stack: coderelay_devstack::Stack) {
    /// use coderelay_devstack::{Action, Api, Rule};
    /// let interception = stack.intercept(Rule::once(Api::EndTxn, Action::DropResponse));
    /// // A client commits a transaction …
    /// assert_eq!(interception.hits(), 1);
    /// # }
    /// ```
    ///
    /// # Panics
    /// If the stack was built without [`Builder::linked`](super::Builder::linked).
    pub fn intercept(&self, rule: Rule) -> Interception {
        assert!(!self.links.is_empty(), "this stack was built without links: Stack::builder().linked(true)");
        self.rules.add(rule)
    }
}
