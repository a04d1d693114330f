//! The client's address, as far as the front door knows it.

use axum::http::{Extensions, HeaderMap};
use std::net::{IpAddr, SocketAddr};

/// The client's address. The front door puts it into each request's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientIp(pub IpAddr);

impl ClientIp {
    /// The address in a request's extensions.
    pub(crate) fn of(extensions: &Extensions) -> Option<IpAddr> {
        extensions.get().map(|Self(address)| address.to_canonical())
    }

    /// The address that the outermost of `proxies` trusted proxies has seen. Each proxy appends its peer's address to
    /// `X-Forwarded-For`; anything further left may be forged by the client. If the header has fewer entries, the
    /// request did not come through all proxies, and none of them can be trusted.
    pub fn behind(self, proxies: usize, headers: &HeaderMap) -> Self {
        let Some(from_right) = proxies.checked_sub(1) else { return self };
        let lines: Vec<_> = headers.get_all("x-forwarded-for").iter().collect();
        let seen = lines.iter().rev().flat_map(|line| line.to_str().unwrap_or_default().rsplit(',')).nth(from_right);
        seen.and_then(|seen| address(seen.trim())).map_or(self, Self)
    }
}

/// An address, without the port that some proxies append.
pub(crate) fn address(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| text.parse().ok().map(|socket: SocketAddr| socket.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn only_trusted_proxies_are_believed() {
        let peer = ClientIp([192, 0, 2, 1].into());
        let seen = |proxies, lines: &[&'static str]| {
            let lines = lines.iter().map(|line| ("x-forwarded-for".parse().unwrap(), HeaderValue::from_static(line)));
            peer.behind(proxies, &lines.collect()).0.to_string()
        };
        assert_eq!(seen(0, &["198.51.100.1"]), "192.0.2.1");
        assert_eq!(seen(1, &["10.0.0.1, 198.51.100.1"]), "198.51.100.1");
        assert_eq!(seen(2, &["10.0.0.1, 198.51.100.1"]), "10.0.0.1");
        assert_eq!(seen(2, &["10.0.0.1", "198.51.100.1,203.0.113.7:4711"]), "198.51.100.1");
        assert_eq!(seen(1, &["[2001:db8::1]:443"]), "2001:db8::1");
        for lines in [&[][..], &["198.51.100.1"], &["unknown, 198.51.100.1"], &[", 198.51.100.1"]] {
            assert_eq!(seen(2, lines), "192.0.2.1", "{lines:?}");
        }
    }
}
