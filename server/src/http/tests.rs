//! The endpoints against what etcd 3.6.14 was seen to answer.

use super::*;
use crate::metrics::Options;
use crate::status::errors;
use ::http::Request;
use http_body::Body as _;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Mutex;

#[derive(Clone)]
struct State {
    alarms: Vec<AlarmType>,
    leader: bool,
    learner: bool,
    linearizable: Result<(), Status>,
    hangs: bool,
}

struct Member(Mutex<State>);

impl Probe for Arc<Member> {
    fn alarms(&self) -> Result<Vec<AlarmType>, Status> {
        Ok(self.0.lock().unwrap().alarms.clone())
    }
    fn has_leader(&self) -> bool {
        self.0.lock().unwrap().leader
    }
    fn is_learner(&self) -> bool {
        self.0.lock().unwrap().learner
    }
    async fn read(&self, linearizable: bool) -> Result<(), Status> {
        let state = self.0.lock().unwrap().clone();
        if linearizable && state.hangs {
            std::future::pending::<()>().await;
        }
        if linearizable {
            state.linearizable
        } else {
            Ok(())
        }
    }
    fn cluster_version(&self) -> Option<Cow<'static, str>> {
        self.0
            .lock()
            .unwrap()
            .leader
            .then_some(Cow::Borrowed("3.6.0"))
    }
    fn raft_status(&self) -> serde_json::Value {
        serde_json::json!({"id": "1"})
    }
}

struct Fixture {
    http: Http<Arc<Member>>,
    member: Arc<Member>,
}

fn fixture(settings: Settings) -> Fixture {
    let member = Arc::new(Member(Mutex::new(State {
        alarms: Vec::new(),
        leader: true,
        learner: false,
        linearizable: Ok(()),
        hangs: false,
    })));
    let metrics = Arc::new(Metrics::new(&Options::default()));
    Fixture {
        http: Http::new(member.clone(), metrics, settings),
        member,
    }
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }
}

impl Fixture {
    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.member.0.lock().unwrap());
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], role: Role) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let mut response = self.http.respond(&parts, role).await;
        let mut body = Vec::new();
        while let Some(frame) = poll_fn(|cx| Pin::new(response.body_mut()).poll_frame(cx)).await {
            body.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
        Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: String::from_utf8(body).unwrap(),
        }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], Role::All).await
    }

    /// Status and body.
    async fn sees(&self, path: &str) -> (u16, String) {
        let answer = self.get(path).await;
        (answer.status, answer.body)
    }
}

fn ok(body: &str) -> (u16, String) {
    (200, body.into())
}

fn ill(body: &str) -> (u16, String) {
    (503, body.into())
}

#[tokio::test]
async fn version() {
    let f = fixture(Settings::default());
    let answer = f.get("/version").await;
    assert_eq!(
        answer.body,
        r#"{"etcdserver":"3.6.14","etcdcluster":"3.6.0","storage":"3.6.0"}"#
    );
    assert_eq!(answer.header("content-type"), "application/json");
    f.set(|s| s.leader = false);
    assert_eq!(
        f.get("/version").await.body,
        r#"{"etcdserver":"3.6.14","etcdcluster":"not_decided","storage":"unknown"}"#
    );
}

#[tokio::test]
async fn health_names_the_first_problem_in_etcd_s_order() {
    let f = fixture(Settings::default());
    let answer = f.get("/health").await;
    assert_eq!(answer.body, r#"{"health":"true","reason":""}"#);
    assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");

    f.set(|s| s.linearizable = Err(errors::TIMEOUT));
    let timeout =
        "{\"health\":\"false\",\"reason\":\"RANGE ERROR:etcdserver: request timed out\"}\n";
    assert_eq!(f.sees("/health").await, ill(timeout));
    let healthy = ok(r#"{"health":"true","reason":""}"#);
    assert_eq!(f.sees("/health?serializable=true").await, healthy);
    assert_eq!(f.sees("/health?serializable=1").await, ill(timeout));

    f.set(|s| s.leader = false);
    let no_leader = "{\"health\":\"false\",\"reason\":\"RAFT NO LEADER\"}\n";
    assert_eq!(f.sees("/health").await, ill(no_leader));
    assert_eq!(f.sees("/health?serializable=true").await, healthy);

    f.set(|s| s.alarms = vec![AlarmType::Nospace, AlarmType::Corrupt]);
    let alarm = |name| {
        ill(&format!(
            "{{\"health\":\"false\",\"reason\":\"ALARM {name}\"}}\n"
        ))
    };
    assert_eq!(f.sees("/health?serializable=true").await, alarm("NOSPACE"));
    let path = "/health?exclude=NOSPACE&serializable=true";
    assert_eq!(f.sees(path).await, alarm("CORRUPT"));
    let path = "/health?exclude=NOSPACE&exclude=%43ORRUPT&serializable=true";
    assert_eq!(f.sees(path).await, healthy);
}

#[tokio::test]
async fn a_read_that_hangs_fails_the_check_in_time() {
    let f = fixture(Settings {
        check_timeout: Duration::from_millis(10),
        ..Settings::default()
    });
    f.set(|s| s.hangs = true);
    assert_eq!(
        f.sees("/health").await,
        ill("{\"health\":\"false\",\"reason\":\"RANGE ERROR:context deadline exceeded\"}\n")
    );
}

#[tokio::test]
async fn live_and_ready() {
    let f = fixture(Settings::default());
    let answer = f.get("/livez").await;
    assert_eq!((answer.status, &answer.body[..]), (200, "ok\n"));
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert_eq!(
        f.sees("/livez?verbose").await,
        ok("[+]serializable_read ok\nok\n")
    );
    assert_eq!(f.sees("/readyz").await, ok("ok\n"));
    assert_eq!(
        f.sees("/readyz?verbose&exclude=data_corruption&exclude=nonsense")
            .await,
        ok("[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n")
    );
    assert_eq!(f.sees("/livez/serializable_read").await, ok("ok\n"));
    assert_eq!(
        f.sees("/readyz/non_learner?verbose").await,
        ok("[+]non_learner ok\nok\n")
    );
    for path in [
        "/livez/linearizable_read",
        "/livez/",
        "/readyz/nope",
        "/livezz",
    ] {
        assert_eq!(
            f.sees(path).await,
            (404, "404 page not found\n".into()),
            "{path}"
        );
    }

    f.set(|s| {
        s.learner = true;
        s.alarms = vec![AlarmType::Corrupt];
        s.linearizable = Err(errors::LEADER_CHANGED);
    });
    let all = "[-]data_corruption failed: alarm activated: CORRUPT\n\
               [+]serializable_read ok\n\
               [-]linearizable_read failed: etcdserver: leader changed\n\
               [-]non_learner failed: not supported for learner\n\n";
    assert_eq!(f.sees("/readyz").await, ill(all));
    assert_eq!(f.sees("/livez").await, ok("ok\n"));
    assert_eq!(
        f.sees("/readyz/data_corruption?exclude=data_corruption")
            .await,
        ill("[-]data_corruption failed: alarm activated: CORRUPT\n\n")
    );
    let metrics = f.get("/metrics").await.body;
    for series in [
        "etcd_server_healthcheck{name=\"linearizable_read\",type=\"readyz\"} 0",
        "etcd_server_healthcheck{name=\"serializable_read\",type=\"livez\"} 1",
        "etcd_server_healthchecks_total{name=\"data_corruption\",status=\"error\",type=\"readyz\"} 2",
    ] {
        assert!(metrics.lines().any(|line| line == series), "{series}");
    }
}

#[tokio::test]
async fn methods() {
    let f = fixture(Settings::default());
    for path in [
        "/health",
        "/livez",
        "/readyz",
        "/readyz/non_learner",
        "/version",
        "/metrics",
    ] {
        for method in ["POST", "PUT", "DELETE"] {
            let answer = f.send(method, path, &[], Role::All).await;
            assert_eq!(
                (answer.status, &answer.body[..]),
                (405, "Method Not Allowed\n")
            );
            assert_eq!(answer.header("allow"), "GET");
        }
        let answer = f.send("OPTIONS", path, &[], Role::All).await;
        assert_eq!((answer.status, &answer.body[..]), (200, ""));
        assert_eq!(answer.header("access-control-allow-origin"), "*");
    }
}

#[tokio::test]
async fn unknown_paths_and_the_missing_gateway() {
    let f = fixture(Settings::default());
    for path in [
        "/",
        "/v2/keys",
        "/v3alpha/kv/range",
        "/metrics/",
        "/debug/pprof/",
    ] {
        let answer = f.get(path).await;
        assert_eq!(
            (answer.status, &answer.body[..]),
            (404, "404 page not found\n")
        );
        assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
    }
    let answer = f.send("GET", "/v3/kv/range", &[], Role::All).await;
    assert_eq!(
        (answer.status, &answer.body[..]),
        (501, r#"{"code":12, "message":"Method Not Allowed"}"#)
    );
    let answer = f.send("POST", "/v3/kv/range", &[], Role::All).await;
    assert_eq!(answer.status, 501);
    let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(body["code"], 12);
}

#[tokio::test]
async fn metrics_and_variables() {
    let f = fixture(Settings::default());
    let answer = f.get("/metrics").await;
    assert_eq!(
        answer.header("content-type"),
        "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"
    );
    assert!(answer.body.contains("# TYPE etcd_server_has_leader gauge"));
    let answer = f.get("/debug/vars").await;
    let variables: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(variables["raft.status"]["id"], "1");
    assert!(variables["file_descriptor_limit"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn the_metrics_listener_serves_its_part_without_cross_origin_headers() {
    let f = fixture(Settings::default());
    for path in [
        "/metrics",
        "/health",
        "/livez",
        "/readyz",
        "/readyz/non_learner",
    ] {
        let answer = f.send("GET", path, &[], Role::Metrics).await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.header("access-control-allow-origin"), "");
    }
    for path in ["/version", "/debug/vars", "/v3/kv/range", "/"] {
        let answer = f.send("GET", path, &[], Role::Metrics).await;
        assert_eq!(answer.status, 404, "{path}");
    }
}

#[tokio::test]
async fn origins_and_hosts_are_checked_against_their_lists() {
    let f = fixture(Settings {
        origins: vec!["http://a".into()],
        hosts: vec!["good".into(), "::1".into()],
        ..Settings::default()
    });
    let send = async |headers: &[(&str, &str)]| f.send("GET", "/version", headers, Role::All).await;
    let answer = send(&[("host", "good:2379"), ("origin", "http://a")]).await;
    assert_eq!(answer.header("access-control-allow-origin"), "http://a");
    let answer = send(&[("host", "good"), ("origin", "http://b")]).await;
    assert_eq!(
        (answer.status, answer.header("access-control-allow-origin")),
        (200, "")
    );
    assert_eq!(send(&[("host", "[::1]:2379")]).await.status, 200);
    for bad in ["bad", "bad:2379", "", "good.bad"] {
        let answer = send(&[("host", bad)]).await;
        assert_eq!(answer.status, 421, "{bad}");
        assert!(answer.body.contains("--host-whitelist"));
    }
    // Probes of the metrics listener come under names of their own.
    let answer = f
        .send("GET", "/livez", &[("host", "pod")], Role::Metrics)
        .await;
    assert_eq!(answer.status, 200);
}
