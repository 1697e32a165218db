//! Ports for servers that are started, killed and started again at the same address.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{LazyLock, Mutex, PoisonError};

use rand::Rng;

/// The ports handed out so far, so that no two servers of this process get one port before either listens.
static TAKEN: LazyLock<Mutex<BTreeSet<u16>>> = LazyLock::new(Mutex::default);

/// Below every usual ephemeral range (Linux 32768, IANA 49152): the kernel lends no such port to an outgoing connection
/// while its server is down, so a killed node can always have its port back.
const RANGE: std::ops::Range<u16> = 12_000..32_000;

const ATTEMPTS: usize = 1_000;

/// A port of 127.0.0.1 on which nothing listens, different each time it is asked for in this process.
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
    !taken.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() && taken.insert(port)
}

#[cfg(test)]
mod tests {
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
}
