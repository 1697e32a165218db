//! The stack is real, and its nodes can be treated badly.

use coderelay_devstack::Stack;
use std::time::Instant;

#[tokio::test]
async fn starts() {
    let since = Instant::now();
    let stack = Stack::builder()
        .cql(true)
        .observer(coderelay_devstack::Observer::new(move |e| eprintln!("{:?} {e:?}", since.elapsed())))
        .start()
        .await
        .unwrap();
    eprintln!("{} {}", stack.bootstrap_servers(), stack.cql_contact());
    let since = Instant::now();
    stack.broker(0).kill().await.unwrap();
    stack.broker(0).restart().await.unwrap();
    eprintln!("kill, restart {:?}", since.elapsed());
    let since = Instant::now();
    stack.broker(0).restart().await.unwrap();
    eprintln!("restart {:?}", since.elapsed());
}
