//! TCP listener of the service: accepts connections, limits their number and idle time, and shuts down
//! gracefully.
//!
//! Each connection has a deadline for the next request head, which also limits how long it may be idle, and
//! for each write; a peer that sends no request, or does not read its response, is disconnected. A stop
//! signal stops accepting and lets the requests already accepted finish; a second signal ends the wait.

use std::{io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_io_timeout::TimeoutStream;

use crate::{
    deploy::{Service, http::routes, stop::StopSignals},
    error::{Error, Kind, Result, WithContext},
};

/// Buffer of a connection in bytes: limits a request head, and one read or write.
const MAX_BUFFER: usize = 64 << 10;
/// Time that a shutdown waits for work whose clients have disconnected.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves until the process is asked to end, then answers the requests already accepted. Calls `ready` with
/// the bound address.
pub fn serve(service: &Arc<Service>, ready: impl FnOnce(SocketAddr)) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context(|| "cannot start the async runtime".into())?;
    let ended = runtime.block_on(accept(service, ready));
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    ended
}

async fn accept(service: &Arc<Service>, ready: impl FnOnce(SocketAddr)) -> Result<()> {
    let address = service.options.address;
    let listener = TcpListener::bind(address).await.map_err(|it| bind_error(address, it))?;
    let bound = listener.local_addr().context(|| "cannot read the bound address".into())?;
    service.set_address(bound);
    let mut signals = StopSignals::new()?;
    ready(bound);
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(service.options.max_connections));
    let (http, routes) = (http(service), routes(service));
    loop {
        let slot = tokio::select! {
            slot = Arc::clone(&slots).acquire_owned() => slot.expect("it is never closed"),
            () = signals.next() => break,
        };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                // Out of file descriptors: wait until other connections close.
                Err(_) => { tokio::time::sleep(Duration::from_millis(20)).await; continue }
            },
            () = signals.next() => break,
        };
        let connection = graceful.watch(connection(&http, stream, &routes, service.options.deadline));
        tokio::spawn(async move {
            // A client that disconnects is not an error of the service.
            let _ended = connection.await;
            drop(slot);
        });
    }
    service.stop();
    drop(listener);
    tokio::select! {
        () = graceful.shutdown() => {}
        () = tokio::time::sleep(service.options.deadline * 2) => {}
        () = signals.next() => {}
    }
    Ok(())
}

fn http(service: &Service) -> http1::Builder {
    let mut http = http1::Builder::new();
    // The timer starts when the previous response ends, so it also limits how long a connection may be idle.
    http.timer(TokioTimer::new()).header_read_timeout(service.options.deadline).max_buf_size(MAX_BUFFER);
    http
}

type Connection = http1::Connection<TokioIo<Pin<Box<TimeoutStream<TcpStream>>>>, TowerToHyperService<Router>>;

fn connection(http: &http1::Builder, stream: TcpStream, routes: &Router, deadline: Duration) -> Connection {
    let _slower = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    // Reads have their own limits: the head above, the body in `Service::read_body`.
    stream.set_write_timeout(Some(deadline));
    http.serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(routes.clone()))
}

/// Returns the error of a failed bind, with a hint about the flag to change.
fn bind_error(address: SocketAddr, cause: io::Error) -> Error {
    let (kind, hint) = match cause.kind() {
        io::ErrorKind::AddrInUse => (
            Kind::Conflict,
            "another program is using it: stop that one, or choose another --port; 0 picks a free one",
        ),
        io::ErrorKind::AddrNotAvailable => {
            (Kind::Usage, "this machine does not have that address: see --host")
        }
        io::ErrorKind::PermissionDenied => (Kind::Denied, "choose a --port of 1024 or above"),
        _ => (Kind::Internal, "see --host and --port"),
    };
    Error::new(kind, format!("cannot listen on `{address}`")).with_source(cause).hint(hint)
}
