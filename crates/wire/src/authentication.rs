//! Challenge and response (wire spec 6.2).

use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use md5::Md5;
use sha1::Sha1;
use sha2::{Sha224, Sha256, Sha384, Sha512};

use crate::digest::{DigestAlgorithm, DigestValue};

/// P_AUTH_CHALLENGE: random bytes, 64 when we send, 64 to 128 when received.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthChallenge {
    field: [u8; Self::BYTES_MAX],
    length: u8,
}

impl AuthChallenge {
    /// The length of a challenge we send, and the least that is accepted.
    pub const BYTES: usize = 64;
    /// The most that is accepted.
    pub const BYTES_MAX: usize = 128;

    /// A challenge to send.
    pub fn new(random: [u8; Self::BYTES]) -> Self {
        let mut field = [0; Self::BYTES_MAX];
        field[..Self::BYTES].copy_from_slice(&random);
        Self { field, length: Self::BYTES as u8 }
    }

    /// A challenge received, `None` if its length is not acceptable.
    pub(crate) fn received(bytes: &[u8]) -> Option<Self> {
        if !(Self::BYTES..=Self::BYTES_MAX).contains(&bytes.len()) {
            return None;
        }
        let mut field = [0; Self::BYTES_MAX];
        field[..bytes.len()].copy_from_slice(bytes);
        Some(Self { field, length: bytes.len() as u8 })
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.field[..usize::from(self.length)]
    }

    /// Whether the peer sent our own challenge back (`Peer presented the same challenge!`): then its answer would
    /// prove nothing, since we ourselves compute it.
    pub fn reflects(&self, own: &Self) -> bool {
        self.field[..Self::BYTES] == own.field[..Self::BYTES]
    }
}

impl fmt::Debug for AuthChallenge {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// P_AUTH_RESPONSE: the keyed digest of the challenge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthResponse(pub DigestValue);

/// The hash named by `cram-hmac-alg` cannot be used with a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} cannot be used for authentication")]
pub struct UnsupportedAuthentication(pub DigestAlgorithm);

/// The means to prove knowledge of the shared secret.
#[derive(Clone)]
pub struct Authentication {
    algorithm: DigestAlgorithm,
    keyed: Keyed,
}

macro_rules! keyed {
    ($($name:ident)+) => {
        #[derive(Clone)]
        enum Keyed {
            $($name(Hmac<$name>),)+
        }

        impl Keyed {
            fn new(algorithm: DigestAlgorithm, secret: &[u8]) -> Option<Self> {
                match algorithm {
                    // A key may have any length.
                    $(DigestAlgorithm::$name => Hmac::new_from_slice(secret).ok().map(Self::$name),)+
                    DigestAlgorithm::Crc32c => None,
                }
            }

            fn digest(&self, message: &[u8]) -> DigestValue {
                match self {
                    $(Self::$name(mac) => DigestValue::of(&mac.clone().chain_update(message).finalize().into_bytes()),)+
                }
            }

            fn verify(&self, message: &[u8], digest: &[u8]) -> bool {
                match self {
                    // In constant time.
                    $(Self::$name(mac) => mac.clone().chain_update(message).verify_slice(digest).is_ok(),)+
                }
            }
        }
    };
}

keyed! { Md5 Sha1 Sha224 Sha256 Sha384 Sha512 }

impl Authentication {
    /// Authentication with `cram-hmac-alg` and `shared-secret`.
    ///
    /// # Errors
    /// If the algorithm is a checksum that takes no key.
    pub fn new(algorithm: DigestAlgorithm, secret: &[u8]) -> Result<Self, UnsupportedAuthentication> {
        let keyed = Keyed::new(algorithm, secret).ok_or(UnsupportedAuthentication(algorithm))?;
        Ok(Self { algorithm, keyed })
    }

    /// The hash.
    pub const fn algorithm(&self) -> DigestAlgorithm {
        self.algorithm
    }

    /// The answer to the peer's challenge.
    pub fn respond(&self, peer_challenge: &AuthChallenge) -> AuthResponse {
        AuthResponse(self.keyed.digest(peer_challenge.as_bytes()))
    }

    /// Whether the peer's answer to our challenge shows that it knows the secret.
    pub fn accepts(&self, own_challenge: &AuthChallenge, response: &AuthResponse) -> bool {
        self.keyed.verify(own_challenge.as_bytes(), response.0.as_bytes())
    }
}

impl fmt::Debug for Authentication {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Authentication({})", self.algorithm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_decides() {
        let challenge = AuthChallenge::new([7; 64]);
        for algorithm in DigestAlgorithm::ALL.iter().filter(|a| **a != DigestAlgorithm::Crc32c) {
            let one = Authentication::new(*algorithm, b"wirespec").unwrap();
            let other = Authentication::new(*algorithm, b"other").unwrap();
            let response = one.respond(&challenge);
            assert_eq!(response.0.as_bytes().len(), algorithm.bytes());
            assert!(one.accepts(&challenge, &response));
            assert!(!other.accepts(&challenge, &response));
            assert!(!one.accepts(&AuthChallenge::new([8; 64]), &response));
        }
        assert!(Authentication::new(DigestAlgorithm::Crc32c, b"x").is_err());
    }

    #[test]
    fn a_reflected_challenge_is_seen_even_with_more_behind_it() {
        let own = AuthChallenge::new([7; 64]);
        let mut longer = [9; 100];
        longer[..64].fill(7);
        assert!(AuthChallenge::received(&longer).unwrap().reflects(&own));
        assert!(AuthChallenge::received(&longer[..63]).is_none());
        assert!(!AuthChallenge::new([8; 64]).reflects(&own));
    }
}
