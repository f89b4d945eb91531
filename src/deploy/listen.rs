//! Connections: how many there are, how long each may take, and how they end.
//!
//! A connection has a deadline for each head of a request, idle or not, and for each piece of an answer: whoever
//! sends nothing or reads nothing loses it. A stop answers everything that was taken; a second signal ends that.

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
    deploy::{Service, http::routes, stop::Ends},
    error::{Doing, Error, Kind, Result},
};

/// Bytes of a head at most, and of what is read or written at once.
const BUFFER: usize = 64 << 10;
/// Work for clients that are gone is not waited for longer than this.
const LINGER: Duration = Duration::from_secs(1);

/// Serves until the process is asked to end; requests that were taken are answered. `ready` is told the
/// address.
pub fn serve(service: &Arc<Service>, ready: impl FnOnce(SocketAddr)) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.doing(|| "cannot start the network".into())?;
    let ended = runtime.block_on(accept(service, ready));
    runtime.shutdown_timeout(LINGER);
    ended
}

async fn accept(service: &Arc<Service>, ready: impl FnOnce(SocketAddr)) -> Result<()> {
    let address = service.options.address;
    let listener = TcpListener::bind(address).await.map_err(|it| deaf(address, it))?;
    let bound = listener.local_addr().doing(|| "cannot tell the address".into())?;
    service.listens_at(bound);
    let mut ends = Ends::new()?;
    ready(bound);
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(service.options.connections));
    let (http, routes) = (http(service), routes(service));
    loop {
        let place = tokio::select! {
            place = Arc::clone(&places).acquire_owned() => place.expect("it is never closed"),
            () = ends.next() => break,
        };
        let stream = tokio::select! {
            taken = listener.accept() => match taken {
                Ok((stream, _)) => stream,
                // Out of file descriptors: others will go away.
                Err(_) => { tokio::time::sleep(Duration::from_millis(20)).await; continue }
            },
            () = ends.next() => break,
        };
        let connection = graceful.watch(connection(&http, stream, &routes, service.options.deadline));
        tokio::spawn(async move {
            // A client that breaks off is its own affair.
            let _ended = connection.await;
            drop(place);
        });
    }
    service.stop();
    drop(listener);
    tokio::select! {
        () = graceful.shutdown() => {}
        () = tokio::time::sleep(service.options.deadline * 2) => {}
        () = ends.next() => {}
    }
    Ok(())
}

fn http(service: &Service) -> http1::Builder {
    let mut http = http1::Builder::new();
    // The time starts with the end of the answer before: it is the limit of an idle connection, too.
    http.timer(TokioTimer::new()).header_read_timeout(service.options.deadline).max_buf_size(BUFFER);
    http
}

type Connection = http1::Connection<TokioIo<Pin<Box<TimeoutStream<TcpStream>>>>, TowerToHyperService<Router>>;

fn connection(http: &http1::Builder, stream: TcpStream, routes: &Router, deadline: Duration) -> Connection {
    let _slower = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    // Reading has its limits where it is known what is read.
    stream.set_write_timeout(Some(deadline));
    http.serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(routes.clone()))
}

/// Why nobody can ask at this address.
fn deaf(address: SocketAddr, why: io::Error) -> Error {
    let (kind, hint) = match why.kind() {
        io::ErrorKind::AddrInUse => (
            Kind::Conflict,
            "another program has it: end that, or take another --port; 0 takes any that is free",
        ),
        io::ErrorKind::AddrNotAvailable => (Kind::Usage, "this machine has no such address: see --host"),
        io::ErrorKind::PermissionDenied => (Kind::Denied, "take a --port from 1024 on"),
        _ => (Kind::Internal, "see --host and --port"),
    };
    Error::new(kind, format!("cannot listen at `{address}`")).because(why).hint(hint)
}
