//! Ports for servers that are started, killed and started again at the same address.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::{LazyLock, Mutex, PoisonError};

use rand::Rng;

/// The ports handed out so far and the [`mark`] of each, so that no two servers get one port before either listens.
static TAKEN: LazyLock<Mutex<BTreeMap<u16, UnixListener>>> = LazyLock::new(Mutex::default);

/// Below every usual ephemeral range (Linux 32768, IANA 49152): the kernel lends no such port to an outgoing connection
/// while its server is down, so a killed node can always have its port back.
const RANGE: std::ops::Range<u16> = 12_000..32_000;

const ATTEMPTS: usize = 1_000;

/// A port of 127.0.0.1 on which nothing listens, and that no process on this machine was given that still lives.
///
/// # Errors
/// If a thousand random ports were all in use.
pub fn free_port() -> io::Result<u16> {
    let mut random = rand::rng();
    (0..ATTEMPTS)
        .map(|_| random.random_range(RANGE))
        .find(|port| claim(*port))
        .ok_or_else(|| io::Error::new(io::ErrorKind::AddrInUse, "no free port found"))
}

/// `preferred` if nothing listens there, else any free one.
///
/// # Errors
/// As [`free_port`].
pub fn preferred_port(preferred: u16) -> io::Result<u16> {
    if claim(preferred) { Ok(preferred) } else { free_port() }
}

fn claim(port: u16) -> bool {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    // In this order: whoever holds the mark may not listen yet.
    let Ok(mark) = mark(port) else { return false };
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() && taken.insert(port, mark).is_none()
}

/// Claims the port among all processes of this machine that ask here: a name that the kernel gives to one socket at a time, and
/// takes back when the process ends.
fn mark(port: u16) -> io::Result<UnixListener> {
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(format!("coderelay-devstack-port-{port}"))?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_port_is_handed_out_twice() {
        let ports: BTreeSet<u16> = (0..200).map(|_| free_port().unwrap()).collect();
        assert_eq!(ports.len(), 200);
    }

    #[test]
    fn a_port_in_use_is_replaced_by_a_free_one() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let used = listener.local_addr().unwrap().port();
        assert_ne!(preferred_port(used).unwrap(), used);
    }

    #[test]
    fn a_port_that_another_process_has_claimed_is_left_to_it() {
        let port = RANGE.end - 1;
        let _others = mark(port).unwrap();
        assert_ne!(preferred_port(port).unwrap(), port);
    }
}
