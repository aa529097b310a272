//! Calls with bytes of the test's own making: methods and messages no typed client would send.

use bytes::{Buf, BufMut, Bytes};
use quorate_tests::client::Client;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Status};

/// Passes message bytes through unchanged.
#[derive(Clone, Copy, Default)]
struct BytesCodec;

impl Codec for BytesCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = BytesCodec;
    type Decoder = BytesCodec;
    fn encoder(&mut self) -> BytesCodec {
        *self
    }
    fn decoder(&mut self) -> BytesCodec {
        *self
    }
}

impl Encoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(length)))
    }
}

/// One unary call with these message bytes.
pub async fn call(
    client: &Client,
    path: &'static str,
    message: impl Into<Bytes>,
) -> Result<Bytes, Status> {
    call_with(client, path, message, |_| {}).await
}

/// One unary call with these message bytes and metadata.
pub async fn call_with(
    client: &Client,
    path: &'static str,
    message: impl Into<Bytes>,
    edit: impl FnOnce(&mut tonic::metadata::MetadataMap),
) -> Result<Bytes, Status> {
    let mut grpc = tonic::client::Grpc::new(client.channel.clone());
    let ready = grpc.ready().await;
    ready.map_err(|e| Status::unavailable(e.to_string()))?;
    let mut request = Request::new(message.into());
    edit(request.metadata_mut());
    let path = PathAndQuery::from_static(path);
    let response = grpc.unary(request, path, BytesCodec).await?;
    Ok(response.into_inner())
}

/// One HTTP/1.1 GET; returns the status and the body.
pub async fn http_get(url: &str, path: &str) -> (u16, Bytes) {
    use http_body_util::{BodyExt, Empty};
    use hyper_util::rt::TokioIo;
    let address = url.strip_prefix("http://").expect("a plain URL");
    let stream = tokio::net::TcpStream::connect(address).await;
    let io = TokioIo::new(stream.expect("a connection"));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io)
        .await
        .expect("a handshake");
    let driver = tokio::spawn(connection);
    let request = hyper::Request::get(path)
        .header("host", address)
        .body(Empty::<Bytes>::new())
        .expect("a request");
    let response = sender.send_request(request).await.expect("a response");
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.expect("a body");
    driver.abort();
    (status, body.to_bytes())
}
