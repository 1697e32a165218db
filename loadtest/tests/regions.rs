//! Two regions under a short load while the link between them is cut, and one is killed meanwhile: producers go on, what only the dead one
//! has is counted, and both end with every packet once.

#![allow(clippy::unwrap_used, reason = "a helper of tests")]

mod support;

use loadtest::devstack::Devstack;
use loadtest::scenario::{Action, Fault, Target};
use support::{run, scenario};

#[tokio::test(flavor = "multi_thread")]
async fn regions_that_are_cut_off_and_killed_go_on_and_converge() {
    let set = ["load.rate=200", "load.duration=12s", "load.warm_up=2s", "generator.max_slip=10s", "thresholds=[]"];
    let mut scenario = scenario("partition", &set);
    let [cut] = scenario.faults.as_mut_slice() else { panic!("{:?}", scenario.faults) };
    (cut.at, cut.duration) = ("2s".parse().unwrap(), "8s".parse().unwrap());
    let kill = Fault { at: "5s".parse().unwrap(), action: Action::Kill, target: Target::Region, ..cut.clone() };
    scenario.faults.push(Fault { duration: "3s".parse().unwrap(), ..kill });

    let devstack = Devstack::start_for(&scenario, None).await.unwrap();
    let summary = run(&devstack, "partition", &scenario).await;
    devstack.stop().await.unwrap();
    assert_eq!((summary.packets.acknowledged, summary.packets.failed), (2400, 0), "{:?}", summary.errors);
    // Half of three seconds' packets, which the cut kept from the other region.
    assert!(summary.figures["exposed"] > 200.0, "{:?}", summary.figures);
    assert!(summary.figures["gap_s"] < 5.0, "{:?}", summary.figures);
    for region in ["us-east", "eu-west"] {
        let audit = &summary.audits[region];
        assert!(audit.is_clean() && audit.acknowledged == 2800, "{region}: {audit:?}");
    }
    // Each packet comes home once and to the other region once; what was sent during the cut came late, or the cut let it through.
    let (home, mirrored) = (summary.latencies["topic"], summary.latencies["mirror"]);
    assert_eq!((home.count, mirrored.count), (2400, 2400));
    assert!(mirrored.max > 6000.0 && mirrored.p50 > 1000.0, "{mirrored:?}");
    assert!(summary.figures.contains_key("converged_s"), "{:?}", summary.figures);
}
