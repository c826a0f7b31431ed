//! Addresses of connections as the command line writes them: `[FAMILY:]ADDRESS[:PORT]`.

use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The port of an address that names none.
pub const DEFAULT_PORT: u16 = 7788;

/// The address family as DRBD names it. `sdp` and `ssocks` are IPv4 over other sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AddressFamily {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// IPv4 over InfiniBand's Sockets Direct Protocol.
    Sdp,
    /// IPv4 over Dolphin SuperSockets.
    Ssocks,
}

impl AddressFamily {
    /// The name in configuration files, on the command line and in `DRBD_PEER_AF`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Sdp => "sdp",
            Self::Ssocks => "ssocks",
        }
    }
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Address {
    /// The family.
    pub family: AddressFamily,
    /// The address and port.
    pub socket: SocketAddr,
}

/// A text that is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AddressError(String);

impl Address {
    /// The address of a socket, with the family that goes with it.
    pub const fn of_socket(socket: SocketAddr) -> Self {
        let family = match socket {
            SocketAddr::V4(_) => AddressFamily::Ipv4,
            SocketAddr::V6(_) => AddressFamily::Ipv6,
        };
        Self { family, socket }
    }

    /// The form of `drbdsetup show`: `ipv4 10.0.0.1:7788`.
    pub fn show(&self) -> String {
        format!("{} {}", self.family.name(), self.socket)
    }

    /// The address with every group of an IPv6 address written out, as handlers get it in `DRBD_PEER_ADDRESS`.
    pub fn host_for_handlers(&self) -> String {
        match self.socket.ip() {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => {
                let groups: Vec<String> =
                    address.segments().iter().map(|group| format!("{group:04x}")).collect();
                groups.join(":")
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.family.name(), self.socket)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let families = [
            ("ipv4:", AddressFamily::Ipv4),
            ("ipv6:", AddressFamily::Ipv6),
            ("sdp:", AddressFamily::Sdp),
            ("ssocks:", AddressFamily::Ssocks),
            ("sci:", AddressFamily::Ssocks),
        ];
        let (family, rest) = families
            .iter()
            .find_map(|(prefix, family)| text.strip_prefix(prefix).map(|rest| (*family, rest)))
            .unwrap_or((AddressFamily::Ipv4, text));
        let (host, port) = split_port(family, rest)?;
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => port.parse().map_err(|_| AddressError(format!("{port} is not a valid number")))?,
        };
        let wants_v6 = family == AddressFamily::Ipv6;
        // A numeric address needs no resolver; a name is looked up as the original does.
        let socket = match host.parse::<IpAddr>() {
            Ok(address) if address.is_ipv6() == wants_v6 => Some(SocketAddr::new(address, port)),
            Ok(_) => None,
            Err(_) => (host, port)
                .to_socket_addrs()
                .map_err(|_| {
                    AddressError(format!(
                        "can not resolve the hostname: gethostbyname({host}): Host name lookup failure"
                    ))
                })?
                .find(|socket| socket.is_ipv6() == wants_v6),
        };
        match socket {
            Some(socket) => Ok(Self { family, socket }),
            None => Err(AddressError(format!("'{host}' is no {} address", family.name()))),
        }
    }
}

fn split_port(family: AddressFamily, rest: &str) -> Result<(&str, Option<&str>), AddressError> {
    if family != AddressFamily::Ipv6 {
        return Ok(rest.rsplit_once(':').map_or((rest, None), |(host, port)| (host, Some(port))));
    }
    let unexpected = || AddressError(format!("unexpected ipv6 format: {rest}"));
    let inner = rest.strip_prefix('[').ok_or_else(unexpected)?;
    let (host, behind) = inner.split_once(']').ok_or_else(unexpected)?;
    match behind.strip_prefix(':') {
        Some(port) => Ok((host, Some(port))),
        None if behind.is_empty() => Ok((host, None)),
        None => Err(unexpected()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_reads_and_shows() {
        let cases = [
            ("ipv4:127.0.0.1:7789", "ipv4 127.0.0.1:7789", "ipv4:127.0.0.1:7789"),
            ("127.0.0.1:7789", "ipv4 127.0.0.1:7789", "ipv4:127.0.0.1:7789"),
            ("10.0.0.1", "ipv4 10.0.0.1:7788", "ipv4:10.0.0.1:7788"),
            ("ipv6:[fe80::1]:7788", "ipv6 [fe80::1]:7788", "ipv6:[fe80::1]:7788"),
            ("ipv6:[::1]", "ipv6 [::1]:7788", "ipv6:[::1]:7788"),
            ("ssocks:10.0.0.1:1", "ssocks 10.0.0.1:1", "ssocks:10.0.0.1:1"),
        ];
        for (text, shown, displayed) in cases {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.show(), shown);
            assert_eq!(address.to_string(), displayed);
            assert_eq!(displayed.parse::<Address>().unwrap(), address);
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "ipv4:127.0.0.1:x",
            "ipv6:::1",
            "ipv6:[::1]x",
            "ipv6:[::1",
            "ipv4:127.0.0.1:70000",
            "ipv6:[127.0.0.1]",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn handlers_see_ipv6_written_out() {
        let address: Address = "ipv6:[fe80::1]:7788".parse().unwrap();
        assert_eq!(address.host_for_handlers(), "fe80:0000:0000:0000:0000:0000:0000:0001");
    }
}
