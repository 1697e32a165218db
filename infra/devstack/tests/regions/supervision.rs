//! The mirror under its supervisor, while it is treated badly.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coderelay_devstack::{Event, Observer, Patience, Regions};
use rdkafka::producer::{FutureProducer, FutureRecord};

use crate::records::{Record, arrive, write};
use crate::{TURN, shared};

/// How long the supervisor may take to act.
const NOTICE: Duration = Duration::from_secs(60);

/// So short that no test has to wait for long.
const PATIENCE: Patience =
    Patience { stall: Duration::from_secs(5), start: Duration::from_secs(60), pause: Duration::from_secs(5) };

/// Why the supervisor has started the mirror again, each time.
#[derive(Debug, Default, Clone)]
struct Reasons(Arc<Mutex<Vec<String>>>);

impl Reasons {
    fn observer(&self) -> Observer {
        let reasons = Arc::clone(&self.0);
        Observer::new(move |event| {
            if let Event::Restarting { reason, .. } = event {
                reasons.lock().unwrap().push(reason.clone());
            }
        })
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    async fn first(&self) -> String {
        let deadline = Instant::now() + NOTICE;
        loop {
            if let Some(reason) = self.all().first() {
                return reason.clone();
            }
            assert!(Instant::now() < deadline, "nothing was noticed");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Does `work` while the mirror is looked after, and waits until it is well again.
async fn supervised<T>(regions: &Regions, reasons: &Reasons, work: impl Future<Output = T>) -> T {
    let observer = reasons.observer();
    tokio::select! {
        end = regions.mirror().supervise(PATIENCE, &observer) => panic!("no longer looked after: {end:?}"),
        done = async { let done = work.await; well(regions).await; done } => done,
    }
}

/// Not [`Process::ready`](coderelay_devstack::Process::ready), for which a process that is about to be started again has died.
async fn well(regions: &Regions) {
    let deadline = Instant::now() + NOTICE;
    while let Err(reason) = regions.mirror().process().is_ready().await {
        assert!(Instant::now() < deadline, "{reason}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn restarts(regions: &Regions) -> u64 {
    coderelay_mirrormaker::restarts::read(regions.mirror().restarts_file()).unwrap().unwrap()
}

fn numbered(text: &str) -> Vec<Record> {
    (0..1_000).map(|number| Record::plain(&format!("{text} {number}"))).collect()
}

#[tokio::test]
async fn a_killed_mirror_is_started_again_and_nothing_is_missing() {
    let _turn = TURN.lock().await;
    let (regions, reasons) = (shared().await, Reasons::default());
    let (from, to) = (regions.us_east(), regions.eu_west());
    let before = restarts(regions);
    supervised(regions, &reasons, async {
        write(from, &numbered("before")).await;
        regions.mirror().process().kill().await.unwrap();
        write(from, &numbered("after")).await;
        arrive(from, to, &[numbered("before"), numbered("after")].concat()).await;
    })
    .await;
    assert_eq!(reasons.all(), ["it has ended"]);
    assert_eq!(restarts(regions), before + 1, "which `relayctl mirror status` shows");
}

#[tokio::test]
async fn a_mirror_that_hangs_is_noticed_and_started_again() {
    let _turn = TURN.lock().await;
    let (regions, reasons) = (shared().await, Reasons::default());
    let (from, to) = (regions.eu_west(), regions.us_east());
    supervised(regions, &reasons, async {
        regions.mirror().process().pause().await.unwrap();
        write(from, &numbered("hanging")).await;
        let reason = reasons.first().await;
        assert!(reason.ends_with("stands still"), "{reason}");
        arrive(from, to, &numbered("hanging")).await;
    })
    .await;
    assert_eq!(reasons.all().len(), 1, "{reasons:?}");
}

/// A task that really fails needs a broken record or broker; what the supervisor reads is what such a task writes.
#[tokio::test]
async fn a_failed_task_is_noticed_and_the_mirror_started_again() {
    let _turn = TURN.lock().await;
    let (regions, reasons) = (shared().await, Reasons::default());
    let producer: FutureProducer = regions.eu_west().kafka_client().create().unwrap();
    let say = async |value: Option<&str>| {
        let mut record = FutureRecord::to("mm2-status.us-east.internal").key("status-task-MirrorSourceConnector-9");
        record.payload = value;
        producer.send(record, NOTICE).await.unwrap();
    };
    supervised(regions, &reasons, async {
        say(Some(r#"{"state":"FAILED","trace":"too large\n\tat A","worker_id":"w","generation":1}"#)).await;
        let reason = reasons.first().await;
        assert_eq!(reason, "us-east->eu-west: MirrorSourceConnector-9 has failed: too large");
        // There is no such task: it will not say anything else.
        say(None).await;
    })
    .await;
    assert_eq!(reasons.all().len(), 1, "{reasons:?}");
}

/// The mirror goes on by itself, or is started again where this takes longer than the tests' short patience: both are well.
#[tokio::test]
async fn a_region_that_was_killed_comes_back_and_what_it_missed_arrives() {
    let _turn = TURN.lock().await;
    let (regions, reasons) = (shared().await, Reasons::default());
    let (lost, other) = (regions.us_east(), regions.eu_west());
    supervised(regions, &reasons, async {
        lost.kill().await.unwrap();
        assert!(lost.nodes().all(|node| !node.is_running()));
        write(other, &numbered("missed")).await;
        lost.restart().await.unwrap();
        arrive(other, lost, &numbered("missed")).await;
    })
    .await;
}
