//! The URLs of flags: where to listen, what to advertise, who founds the cluster.

use std::fmt;
use std::path::PathBuf;

/// Where a listener binds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An IP (or `localhost`) and a port.
    Tcp(String, u16),
    /// A Unix socket; etcd takes everything after `unix://` as the path.
    Unix(PathBuf),
}

/// One listen URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// As given.
    pub url: String,
    /// Scheme `https` or `unixs`.
    pub tls: bool,
    /// Where.
    pub address: Address,
}

impl Endpoint {
    /// Parses `http://127.0.0.1:2379`, `unix:///run/etcd.sock` and their TLS forms. Host names other
    /// than `localhost` are refused, as in etcd.
    pub fn parse(url: &str) -> Result<Endpoint, String> {
        let (scheme, rest) = url
            .split_once("://")
            .ok_or_else(|| format!("URL scheme must be http, https, unix, or unixs: {url}"))?;
        let tls = matches!(scheme, "https" | "unixs");
        let address = match scheme {
            "unix" | "unixs" if rest.is_empty() => {
                return Err(format!("URL has no path: {url}"));
            }
            "unix" | "unixs" => Address::Unix(PathBuf::from(rest)),
            "http" | "https" => {
                let (host, port) = host_port(url, rest)?;
                if host != "localhost" && host.parse::<std::net::IpAddr>().is_err() {
                    return Err(format!("expected IP in URL for binding ({url})"));
                }
                Address::Tcp(host, port)
            }
            _ => {
                return Err(format!(
                    "URL scheme must be http, https, unix, or unixs: {url}"
                ));
            }
        };
        Ok(Endpoint {
            url: url.to_owned(),
            tls,
            address,
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

fn host_port(url: &str, rest: &str) -> Result<(String, u16), String> {
    if let Some(slash) = rest.find('/')
        && &rest[slash..] != "/"
    {
        return Err(format!("URL must not contain a path: {url}"));
    }
    let rest = rest.trim_end_matches('/');
    let (host, port) = rest
        .rsplit_once(':')
        .ok_or_else(|| format!("URL address does not have the form \"host:port\": {url}"))?;
    let port = port
        .parse()
        .map_err(|_| format!("URL has a bad port: {url}"))?;
    let host = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    if host.is_empty() {
        return Err(format!("URL has no host: {url}"));
    }
    Ok((host.to_owned(), port))
}

/// Checks a comma-separated list of advertised URLs; host names are allowed here.
pub fn advertised(text: &str) -> Result<Vec<String>, String> {
    let mut urls = Vec::new();
    for url in text.split(',').map(str::trim).filter(|u| !u.is_empty()) {
        match url.split_once("://") {
            Some(("http" | "https", rest)) => {
                host_port(url, rest)?;
            }
            Some(("unix" | "unixs", rest)) if !rest.is_empty() => {}
            _ => {
                return Err(format!(
                    "URL scheme must be http, https, unix, or unixs: {url}"
                ));
            }
        }
        urls.push(url.to_owned());
    }
    if urls.is_empty() {
        return Err("no URL given".to_owned());
    }
    // etcd keeps URL lists sorted; ids depend on the order.
    urls.sort();
    Ok(urls)
}

/// `--initial-cluster`: names and their peer URLs, sorted by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitialCluster {
    /// (name, sorted peer URLs).
    pub members: Vec<(String, Vec<String>)>,
}

impl InitialCluster {
    /// A cluster of one.
    pub fn single(name: &str, peer_urls: &[String]) -> InitialCluster {
        InitialCluster {
            members: vec![(name.to_owned(), peer_urls.to_vec())],
        }
    }

    /// Parses `n1=url,n1=url2,n2=url`.
    pub fn parse(text: &str) -> Result<InitialCluster, String> {
        let mut members = std::collections::BTreeMap::<String, Vec<String>>::new();
        for pair in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (name, url) = pair
                .split_once('=')
                .ok_or_else(|| format!("{pair:?} is not of the form name=url"))?;
            members
                .entry(name.to_owned())
                .or_default()
                .extend(advertised(url)?);
        }
        if members.is_empty() {
            return Err("no member given".to_owned());
        }
        for urls in members.values_mut() {
            urls.sort();
        }
        Ok(InitialCluster {
            members: members.into_iter().collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_urls_name_an_address() {
        assert_eq!(
            Endpoint::parse("http://127.0.0.1:2379").unwrap().address,
            Address::Tcp("127.0.0.1".into(), 2379)
        );
        assert_eq!(
            Endpoint::parse("http://[::1]:1").unwrap().address,
            Address::Tcp("::1".into(), 1)
        );
        assert_eq!(
            Endpoint::parse("unix:///a/b.sock").unwrap().address,
            Address::Unix("/a/b.sock".into())
        );
        assert!(Endpoint::parse("https://localhost:1").unwrap().tls);
        for wrong in [
            "127.0.0.1:2379",
            "ftp://127.0.0.1:1",
            "http://example.com:2379",
            "http://127.0.0.1",
            "http://127.0.0.1:x",
            "http://127.0.0.1:1/path",
            "unix://",
        ] {
            assert!(Endpoint::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_initial_cluster_groups_urls_by_name() {
        let cluster = InitialCluster::parse("b=http://h:2,a=http://h:3,b=http://h:1").unwrap();
        assert_eq!(
            cluster.members,
            [
                ("a".to_owned(), vec!["http://h:3".to_owned()]),
                (
                    "b".to_owned(),
                    vec!["http://h:1".to_owned(), "http://h:2".to_owned()]
                )
            ]
        );
        assert!(InitialCluster::parse("").is_err());
        assert!(InitialCluster::parse("a").is_err());
    }
}
