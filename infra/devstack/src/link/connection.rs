//! One client's connection over a link: its requests go one way, the broker's responses the other.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::link::frames::{Frames, RequestHeader, ResponseHeader, api_key_and_correlation_id, correlation_id};
use crate::link::rule::{Action, Rules};

/// Carries bytes both ways until either side is done, or a rule wants it so.
pub(crate) async fn carry(client: TcpStream, server: TcpStream, whole: watch::Receiver<bool>, rules: Rules) {
    // Without it the proxy would add Nagle's delay; a socket that has gone says so when it is read.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (mut from_server, to_server)) = (client.into_split(), server.into_split());
    let mut to_server = Outlet { to: to_server, whole: whole.clone() };
    let to_client = Outlet { to: to_client, whole };
    let fates = Fates::default();
    let stray = tokio::select! {
        stray = pass_requests(from_client, &mut to_server, &rules, &fates) => stray,
        () = pass_responses(&mut from_server, to_client, &fates) => None,
    };
    // The client is gone. What it has sent still reaches the broker: responses are read to their end, since those that nobody reads
    // would reset the connection, and the broker lose the requests that it has not come to.
    let part = async {
        if let Some(Stray { request, delay }) = stray {
            sleep(delay).await;
            to_server.pass(&request).await;
        }
        drop(to_server);
    };
    let mut nowhere = tokio::io::sink();
    let _ = tokio::join!(part, tokio::io::copy(&mut from_server, &mut nowhere));
}

/// A request that reaches the broker when its client is gone.
struct Stray {
    request: Bytes,
    delay: Duration,
}

/// What becomes of a response.
enum Fate {
    Late(Duration),
    Lost,
}

/// Of the responses under way, those that fare otherwise than usual, by correlation id.
#[derive(Default)]
struct Fates(Mutex<HashMap<i32, Fate>>);

impl Fates {
    fn set(&self, correlation_id: i32, fate: Fate) {
        self.lock().insert(correlation_id, fate);
    }

    fn take(&self, correlation_id: i32) -> Option<Fate> {
        self.lock().remove(&correlation_id)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, Fate>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes to one end while the link is whole.
struct Outlet {
    to: OwnedWriteHalf,
    whole: watch::Receiver<bool>,
}

impl Outlet {
    /// Writes when it may. `None` if that end has closed or the link is gone.
    async fn pass(&mut self, bytes: &[u8]) -> Option<()> {
        self.whole.wait_for(|whole| *whole).await.ok()?;
        self.to.write_all(bytes).await.ok()
    }
}

/// Passes requests on until the client has closed, or is to be cut off.
async fn pass_requests(from: OwnedReadHalf, to: &mut Outlet, rules: &Rules, fates: &Fates) -> Option<Stray> {
    let mut frames = Frames::new(from);
    let select = |header: RequestHeader| {
        let (api_key, id) = api_key_and_correlation_id(header);
        rules.apply(api_key).map(|action| (action, id))
    };
    loop {
        let (before, selected) = frames.next(select).await?;
        to.pass(&before).await?;
        let Some((action, id)) = selected else { continue };
        tracing::debug!(?action, correlation_id = id, "a request is intercepted");
        match action {
            Action::DelayRequest(delay) => sleep(delay).await,
            Action::DelayResponse(delay) => fates.set(id, Fate::Late(delay)),
            Action::DropResponse => fates.set(id, Fate::Lost),
            Action::CutBeforeRequest => return None,
            Action::CutAfterRequest => {
                to.pass(&frames.selected().await?).await;
                return None;
            }
            Action::Stray(delay) => return Some(Stray { request: frames.selected().await?, delay }),
        }
    }
}

/// Passes responses on until the broker has closed, or the client is to be cut off.
async fn pass_responses(from: &mut OwnedReadHalf, mut to: Outlet, fates: &Fates) {
    let mut frames = Frames::new(from);
    let select = |header: ResponseHeader| fates.take(correlation_id(header));
    while let Some((before, fate)) = frames.next(select).await {
        if to.pass(&before).await.is_none() {
            return;
        }
        match fate {
            None => {}
            Some(Fate::Late(delay)) => sleep(delay).await,
            Some(Fate::Lost) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Instant;

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;
    use crate::link::{Api, Interception, Link, Rule};

    const DELAY: Duration = Duration::from_secs(2);

    /// A client, the link and a broker, at the ends of one connection.
    struct World {
        link: Link,
        _interception: Interception,
        client: TcpStream,
        broker: TcpStream,
    }

    impl World {
        /// In which the second `EndTxn` is treated so.
        async fn with(action: Action) -> Self {
            let rules = Rules::default();
            let interception = rules.add(Rule { skip: 1, ..Rule::once(Api::EndTxn, action) });
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let link = Link::to(listener.local_addr().unwrap().port(), &rules).await.unwrap();
            let client = TcpStream::connect((Ipv4Addr::LOCALHOST, link.port())).await.unwrap();
            let (broker, _) = listener.accept().await.unwrap();
            Self { link, _interception: interception, client, broker }
        }

        /// The client sends these `EndTxn`s in one go.
        async fn send(&mut self, ids: impl IntoIterator<Item = u8>) {
            let requests: Vec<u8> =
                ids.into_iter().flat_map(|id| [0, 0, 0, 9, 0, 26, 0, 1, 0, 0, 0, id, b'x']).collect();
            self.client.write_all(&requests).await.unwrap();
        }

        /// The broker reads a request. Its id; `None` if there are no more.
        async fn arrives(&mut self) -> Option<u8> {
            let mut request = [0; 13];
            self.broker.read_exact(&mut request).await.ok().map(|_| request[11])
        }

        /// The broker answers these requests in one go.
        async fn answer(&mut self, ids: impl IntoIterator<Item = u8>) {
            let responses: Vec<u8> = ids.into_iter().flat_map(|id| [0, 0, 0, 5, 0, 0, 0, id, b'y']).collect();
            self.broker.write_all(&responses).await.unwrap();
        }

        /// The client reads a response. Its id; `None` if it was cut off.
        async fn heard(&mut self) -> Option<u8> {
            let mut response = [0; 9];
            self.client.read_exact(&mut response).await.ok().map(|_| response[7])
        }
    }

    #[tokio::test]
    async fn a_delayed_request_arrives_late_and_so_do_those_behind_it() {
        let mut world = World::with(Action::DelayRequest(DELAY)).await;
        let sent = Instant::now();
        world.send([1, 2, 3]).await;
        assert_eq!(world.arrives().await, Some(1));
        world.answer([1]).await;
        assert_eq!(world.heard().await, Some(1));
        assert!(sent.elapsed() < DELAY);
        assert_eq!(world.arrives().await, Some(2));
        assert!(sent.elapsed() >= DELAY);
        assert_eq!(world.arrives().await, Some(3));
        world.answer([2, 3]).await;
        assert_eq!((world.heard().await, world.heard().await), (Some(2), Some(3)));
    }

    #[tokio::test]
    async fn a_delayed_response_is_heard_late_and_so_are_those_behind_it() {
        let mut world = World::with(Action::DelayResponse(DELAY)).await;
        let sent = Instant::now();
        world.send([1, 2, 3]).await;
        for id in 1..=3 {
            assert_eq!(world.arrives().await, Some(id));
        }
        world.answer([1, 2, 3]).await;
        assert_eq!(world.heard().await, Some(1));
        assert!(sent.elapsed() < DELAY);
        assert_eq!(world.heard().await, Some(2));
        assert!(sent.elapsed() >= DELAY);
        assert_eq!(world.heard().await, Some(3));
    }

    #[tokio::test]
    async fn a_dropped_response_cuts_the_client_off_when_the_broker_has_answered() {
        let mut world = World::with(Action::DropResponse).await;
        world.send([1, 2]).await;
        assert_eq!((world.arrives().await, world.arrives().await), (Some(1), Some(2)));
        world.answer([1]).await;
        assert_eq!(world.heard().await, Some(1));
        let cut_off = timeout(DELAY, world.heard()).await;
        assert!(cut_off.is_err(), "heard {cut_off:?} before the broker answered");
        world.answer([2]).await;
        assert_eq!(world.heard().await, None);
        assert_eq!(world.arrives().await, None);
    }

    #[tokio::test]
    async fn a_cut_after_a_request_lets_it_through_and_no_response() {
        let mut world = World::with(Action::CutAfterRequest).await;
        world.send([1, 2, 3]).await;
        assert_eq!(world.heard().await, None);
        assert_eq!(world.arrives().await, Some(1));
        // A broker that answers nobody is not disturbed: it comes to the next request all the same.
        world.answer([1]).await;
        assert_eq!(world.arrives().await, Some(2));
        world.answer([2]).await;
        assert_eq!(world.arrives().await, None);
    }

    #[tokio::test]
    async fn a_cut_before_a_request_lets_only_those_before_it_through() {
        let mut world = World::with(Action::CutBeforeRequest).await;
        world.send([1, 2]).await;
        assert_eq!(world.heard().await, None);
        assert_eq!((world.arrives().await, world.arrives().await), (Some(1), None));
    }

    #[tokio::test]
    async fn a_stray_request_arrives_when_its_client_has_been_cut_off() {
        let mut world = World::with(Action::Stray(DELAY)).await;
        let sent = Instant::now();
        world.send([1, 2, 3]).await;
        assert_eq!(world.heard().await, None);
        assert!(sent.elapsed() < DELAY);
        assert_eq!(world.arrives().await, Some(1));
        world.answer([1]).await;
        assert_eq!(world.arrives().await, Some(2));
        assert!(sent.elapsed() >= DELAY);
        world.answer([2]).await;
        assert_eq!(world.arrives().await, None);
    }

    #[tokio::test]
    async fn what_a_rule_holds_back_waits_for_the_link_to_be_healed() {
        for action in [Action::DelayRequest(DELAY), Action::Stray(DELAY)] {
            let mut world = World::with(action).await;
            world.send([1, 2]).await;
            assert_eq!(world.arrives().await, Some(1));
            world.link.cut();
            let silence = timeout(2 * DELAY, world.arrives()).await;
            assert!(silence.is_err(), "the cut let {silence:?} through");
            world.link.heal();
            assert_eq!(world.arrives().await, Some(2));
        }
    }

    #[tokio::test]
    async fn the_broker_that_leaves_ends_its_client() {
        let mut world = World::with(Action::Stray(DELAY)).await;
        world.send([1]).await;
        assert_eq!(world.arrives().await, Some(1));
        drop(world.broker);
        assert_eq!(world.client.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
