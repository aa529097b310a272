//! From the path of a call to its handler, with everything around it: admission, deadline, metrics.
//!
//! The order of checks is etcd's: framing and size, decoding, learner rule, client version, leader; only
//! then the call counts as started and its handler runs.

use super::channel::{Framed, Responder, Sender};
use super::inbound::{Inbound, Messages, decode};
use super::metadata::ClientVersion;
use crate::api::{Reply, RequestCtx};
use crate::metrics::{Kind, MethodMetrics, Metrics};
use crate::status::{Code, Status, errors};
use bytes::Bytes;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A stream of responses was asked for without a request.
const NO_REQUEST: Status = Status::fixed(
    Code::Internal,
    "cardinality violation: received no request message from non-client-streaming RPC",
);

pub(super) type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What decides whether a call is let in, asked at each call.
pub trait Gate: Send + Sync + 'static {
    /// Whether this member knows a leader.
    fn has_leader(&self) -> bool;
    /// Whether this member is a learner.
    fn is_learner(&self) -> bool;
    /// How long a stream that asks for a leader goes on without one.
    fn leaderless_max(&self) -> Duration;
}

/// Everything let in: for services of tests.
impl Gate for () {
    fn has_leader(&self) -> bool {
        true
    }
    fn is_learner(&self) -> bool {
        false
    }
    fn leaderless_max(&self) -> Duration {
        Duration::MAX
    }
}

/// What a learner does with a method.
#[derive(Clone, Copy)]
pub enum Learner<Req> {
    /// Serves it.
    Serves,
    /// Refuses it.
    Refuses,
    /// Depends on the request.
    If(fn(&Req) -> bool),
}

impl<Req> Learner<Req> {
    fn serves(&self, request: &Req) -> bool {
        match self {
            Learner::Serves => true,
            Learner::Refuses => false,
            Learner::If(serves) => serves(request),
        }
    }
}

/// What a handler is called with besides the message.
pub(super) struct Call {
    pub ctx: RequestCtx,
    pub client_version: ClientVersion,
}

/// Shared by all methods of a router.
pub(super) struct Common {
    pub gate: Box<dyn Gate>,
    pub metrics: Arc<Metrics>,
}

impl Common {
    /// The checks in front of every handler.
    fn admit(&self, kind: Kind, call: &Call, learner_serves: bool) -> Result<(), Status> {
        if !learner_serves && self.gate.is_learner() {
            return Err(errors::NOT_SUPPORTED_FOR_LEARNER);
        }
        if call.client_version == ClientVersion::Invalid {
            return Err(errors::INVALID_CLIENT_API_VERSION);
        }
        let requests = &self.metrics.grpc.client_requests;
        requests.count(kind, call.client_version.name());
        if call.ctx.has_leader && !self.gate.has_leader() {
            return Err(errors::NO_LEADER);
        }
        Ok(())
    }
}

/// Counts the end of a call, whatever it is: a call whose future is dropped was cancelled or ran out of
/// time.
struct Running {
    metrics: Arc<MethodMetrics>,
    since: Option<Instant>,
    deadline: Option<Instant>,
    code: Option<Code>,
}

impl Running {
    fn start(metrics: &Arc<MethodMetrics>, ctx: &RequestCtx) -> Running {
        metrics.started.inc();
        Running {
            metrics: metrics.clone(),
            since: metrics.seconds.as_ref().map(|_| Instant::now()),
            deadline: ctx.deadline,
            code: None,
        }
    }

    fn end(mut self, code: Code) {
        self.code = Some(code);
    }

    fn dropped(&self) -> Code {
        if std::thread::panicking() {
            return Code::Internal;
        }
        match self.deadline.is_some_and(|d| d <= Instant::now()) {
            true => Code::DeadlineExceeded,
            false => Code::Canceled,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.metrics
            .handled(self.code.unwrap_or_else(|| self.dropped()));
        if let (Some(seconds), Some(since)) = (&self.metrics.seconds, self.since) {
            seconds.observe(since.elapsed().as_secs_f64());
        }
    }
}

fn code_of<T>(result: &Result<T, Status>) -> Code {
    match result {
        Ok(_) => Code::Ok,
        Err(status) => status.code,
    }
}

/// The message of a unary call.
pub(super) enum Message<'a> {
    /// A part of the connection's buffer; what is kept of it is copied.
    Lent(&'a [u8]),
    /// What is kept of it keeps all of it.
    Owned(Bytes),
}

impl Message<'_> {
    fn len(&self) -> usize {
        match self {
            Message::Lent(bytes) => bytes.len(),
            Message::Owned(bytes) => bytes.len(),
        }
    }

    fn decode<M: prost::Message + Default>(self) -> Result<M, Status> {
        let what = "grpc: error unmarshalling request";
        match self {
            Message::Lent(bytes) => decode(bytes, what),
            Message::Owned(bytes) => decode(bytes, what),
        }
    }
}

pub(super) type Answering = Boxed<Result<Framed, Status>>;

pub(super) trait Unary: Send + Sync {
    /// Decodes and checks, then returns the future of the handler.
    fn call(&self, call: Call, message: Message<'_>) -> Result<Answering, Status>;
}

pub(super) trait Streaming: Send + Sync {
    /// Checks the call, then returns the future of its handler; responses go to `sender`.
    fn call(&self, call: Call, messages: Messages, sender: Sender) -> Boxed<Result<(), Status>>;
}

#[derive(Clone)]
pub(super) enum Handler {
    Unary(Arc<dyn Unary>),
    Streaming {
        handler: Arc<dyn Streaming>,
        /// Has no end of its own: it is ended when the server drains.
        endless: bool,
    },
}

/// All methods that are served.
pub struct Router {
    pub(super) methods: HashMap<Box<str>, Handler>,
    services: Vec<&'static str>,
    pub(super) common: Arc<Common>,
    /// Largest message of a request.
    pub(super) receive_bytes_max: usize,
}

impl Router {
    /// A router without methods. `receive_bytes_max` bounds a request's message.
    pub fn new(gate: impl Gate, metrics: Arc<Metrics>, receive_bytes_max: usize) -> Router {
        Router {
            methods: HashMap::new(),
            services: Vec::new(),
            common: Arc::new(Common {
                gate: Box::new(gate),
                metrics,
            }),
            receive_bytes_max,
        }
    }

    /// Makes a service known: its unknown methods are named as such.
    pub fn service(&mut self, service: &'static str) {
        if !self.services.contains(&service) {
            self.services.push(service);
        }
    }

    fn add(&mut self, service: &'static str, method: &str, handler: Handler) {
        self.service(service);
        let path = format!("/{service}/{method}").into_boxed_str();
        let before = self.methods.insert(path, handler);
        assert!(before.is_none(), "{service}/{method} is registered once");
    }

    fn metrics(&self, kind: Kind, service: &str, method: &str) -> Arc<MethodMetrics> {
        Arc::new(self.common.metrics.grpc.method(kind, service, method))
    }

    /// Has the series of a method exported although it is not served yet.
    pub fn declare(&mut self, kind: Kind, service: &'static str, method: &str) {
        self.service(service);
        self.metrics(kind, service, method);
    }

    /// Serves a unary method.
    pub fn unary<Req, Res, F, Fut>(
        &mut self,
        service: &'static str,
        method: &str,
        learner: Learner<Req>,
        handler: F,
    ) where
        Req: prost::Message + Default + 'static,
        Res: Reply,
        F: Fn(RequestCtx, Req) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Res, Status>> + Send + 'static,
    {
        let metrics = self.metrics(Kind::Unary, service, method);
        let common = self.common.clone();
        let shared = Arc::new((common, metrics, learner, handler));
        let unary = UnaryFn(move |call: Call, message: Message<'_>| {
            let (common, metrics, learner, handler) = &*shared;
            let network = &common.metrics.network;
            network.client_received_bytes.inc_by(message.len() as u64);
            let request: Req = message.decode()?;
            common.admit(Kind::Unary, &call, learner.serves(&request))?;
            let running = Running::start(metrics, &call.ctx);
            metrics.received.inc();
            let handling = handler(call.ctx, request);
            let shared = shared.clone();
            let answering: Answering = Box::pin(async move {
                let (common, metrics, ..) = &*shared;
                let result = match handling.await {
                    Ok(reply) => Framed::new(reply),
                    Err(status) => Err(status),
                };
                if let Ok(framed) = &result {
                    metrics.sent.inc();
                    let bytes = framed.len() - super::frame::PREFIX_BYTES;
                    let sent = &common.metrics.network.client_sent_bytes;
                    sent.inc_by(bytes as u64);
                }
                running.end(code_of(&result));
                result
            });
            Ok(answering)
        });
        self.add(service, method, Handler::Unary(Arc::new(unary)));
    }

    /// Serves a method with one request and many responses.
    pub fn server_stream<Req, Res, F, Fut>(
        &mut self,
        service: &'static str,
        method: &str,
        learner: bool,
        endless: bool,
        handler: F,
    ) where
        Req: prost::Message + Default + 'static,
        Res: Reply,
        F: Fn(RequestCtx, Req, Responder<Res>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        self.stream(
            Kind::ServerStream,
            service,
            method,
            learner,
            endless,
            move |ctx: RequestCtx, mut requests: Inbound<Req>, responses: Responder<Res>| {
                let handler = handler.clone();
                async move {
                    use crate::api::stream::Requests;
                    match requests.next().await {
                        Some(request) => handler(ctx, request?, responses).await,
                        None => Err(NO_REQUEST),
                    }
                }
            },
        );
    }

    /// Serves a method with many requests and many responses.
    pub fn bidi_stream<Req, Res, F, Fut>(
        &mut self,
        service: &'static str,
        method: &str,
        learner: bool,
        handler: F,
    ) where
        Req: prost::Message + Default + 'static,
        Res: Reply,
        F: Fn(RequestCtx, Inbound<Req>, Responder<Res>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Status>> + Send + 'static,
    {
        self.stream(Kind::BidiStream, service, method, learner, true, handler);
    }

    fn stream<Req, Res, F, Fut>(
        &mut self,
        kind: Kind,
        service: &'static str,
        method: &str,
        learner: bool,
        endless: bool,
        handler: F,
    ) where
        Req: prost::Message + Default + 'static,
        Res: Reply,
        F: Fn(RequestCtx, Inbound<Req>, Responder<Res>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let metrics = self.metrics(kind, service, method);
        let shared = Arc::new((self.common.clone(), metrics, handler));
        let streaming = StreamFn(move |call: Call, messages, sender| -> Boxed<_> {
            let shared = shared.clone();
            Box::pin(async move {
                let (common, metrics, handler) = &*shared;
                common.admit(kind, &call, learner)?;
                let running = Running::start(metrics, &call.ctx);
                let network = &common.metrics.network;
                let requests = Inbound::new(
                    messages,
                    metrics.clone(),
                    network.client_received_bytes.clone(),
                );
                let responses =
                    Responder::new(sender, metrics.clone(), network.client_sent_bytes.clone());
                let watch_leader = call.ctx.has_leader;
                let handling = handler(call.ctx, requests, responses);
                let result = match watch_leader {
                    false => handling.await,
                    true => tokio::select! {
                        result = handling => result,
                        () = leader_lost(&*common.gate) => Err(errors::NO_LEADER),
                    },
                };
                running.end(code_of(&result));
                result
            })
        });
        let handler = Handler::Streaming {
            handler: Arc::new(streaming),
            endless,
        };
        self.add(service, method, handler);
    }

    /// What a path that is not served is answered, in grpc-go's words.
    pub(super) fn unknown(&self, path: &str) -> Status {
        let name = path.strip_prefix('/').unwrap_or(path);
        let text = match name.rsplit_once('/') {
            None => format!("malformed method name: {path:?}"),
            Some((service, method)) if self.services.contains(&service) => {
                format!("unknown method {method} for service {service}")
            }
            Some((service, _)) => format!("unknown service {service}"),
        };
        Status::new(Code::Unimplemented, text)
    }
}

/// Resolves once no leader has been known for as long as the gate allows.
async fn leader_lost(gate: &dyn Gate) {
    let max = gate.leaderless_max();
    let step = (max / 3).clamp(Duration::from_millis(10), Duration::from_secs(60));
    let mut without = 0;
    while without < 3 {
        tokio::time::sleep(step).await;
        without = match gate.has_leader() {
            true => 0,
            false => without + 1,
        };
    }
}

struct UnaryFn<F>(F);

impl<F> Unary for UnaryFn<F>
where
    F: Fn(Call, Message<'_>) -> Result<Answering, Status> + Send + Sync,
{
    fn call(&self, call: Call, message: Message<'_>) -> Result<Answering, Status> {
        (self.0)(call, message)
    }
}

struct StreamFn<F>(F);

impl<F> Streaming for StreamFn<F>
where
    F: Fn(Call, Messages, Sender) -> Boxed<Result<(), Status>> + Send + Sync,
{
    fn call(&self, call: Call, messages: Messages, sender: Sender) -> Boxed<Result<(), Status>> {
        (self.0)(call, messages, sender)
    }
}
