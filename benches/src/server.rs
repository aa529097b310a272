//! Starting servers to load.

use crate::AnyError;
use crate::driver::Target;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    /// Where it listens and who it is.
    pub target: Target,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Starts `binary` with etcd's flags on a data directory inside `dir` and waits until it is healthy.
pub async fn start(
    binary: &Path,
    name: &str,
    dir: &Path,
    extra: &[String],
) -> Result<Server, AnyError> {
    let (client, peer) = (free_port()?, free_port()?);
    let data = dir.join(name);
    let log = std::fs::File::create(dir.join(format!("{name}.log")))?;
    let child = Command::new(binary)
        .arg(format!("--name={name}"))
        .arg(format!("--data-dir={}", data.display()))
        .arg(format!("--listen-client-urls=http://127.0.0.1:{client}"))
        .arg(format!("--advertise-client-urls=http://127.0.0.1:{client}"))
        .arg(format!("--listen-peer-urls=http://127.0.0.1:{peer}"))
        .arg(format!(
            "--initial-advertise-peer-urls=http://127.0.0.1:{peer}"
        ))
        .arg(format!("--initial-cluster={name}=http://127.0.0.1:{peer}"))
        .arg("--quota-backend-bytes=8589934592")
        .args(extra)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let mut server = Server {
        target: Target {
            endpoint: format!("127.0.0.1:{client}"),
            pid: Some(child.id()),
        },
        child,
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(status) = server.child.try_wait()? {
            return Err(format!(
                "{name} ended at start: {status}; see its log in {}",
                dir.display()
            )
            .into());
        }
        if healthy(&server.target.endpoint).await {
            return Ok(server);
        }
        if Instant::now() > deadline {
            return Err(format!("{name} is not healthy after 30 s").into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn healthy(endpoint: &str) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect(endpoint).await?;
        stream
            .write_all(b"GET /health HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<bool, std::io::Error>(answer.starts_with("HTTP/1.1 200"))
    };
    matches!(
        tokio::time::timeout(Duration::from_secs(1), ask).await,
        Ok(Ok(true))
    )
}

/// The first line of `--version`.
pub fn version(binary: &Path) -> Result<String, AnyError> {
    let output = Command::new(binary).arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text
        .lines()
        .find(|l| l.starts_with("Quorate Version"))
        .or_else(|| text.lines().next())
        .unwrap_or("unknown")
        .to_owned())
}
