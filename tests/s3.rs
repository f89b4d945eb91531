//! Test fixture: an S3 server on loopback. It wraps the `s3s-fs` crate in its own accept loop, which counts
//! requests and sets `TCP_NODELAY` (without it, small responses stall).

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};

pub const KEY: &str = "AKIDTEST";
pub const SECRET: &str = "test-secret";

/// Running server, stopped when dropped.
pub struct Server {
    address: SocketAddr,
    requests: Arc<AtomicU64>,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    /// Starts a server that stores one bucket in a folder.
    pub fn start(folder: &Path, bucket: &str) -> Self {
        fs::create_dir_all(folder.join(bucket)).unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder).unwrap());
        builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let service = builder.build();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&requests);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let (service, counter) = (service.clone(), Arc::clone(&counter));
                tokio::spawn(async move {
                    let counted = hyper::service::service_fn(move |request| {
                        counter.fetch_add(1, Ordering::SeqCst);
                        hyper::service::Service::call(&service, request)
                    });
                    let http = Builder::new(TokioExecutor::new());
                    let _closed = http.serve_connection(TokioIo::new(stream), counted).await;
                });
            }
        });
        Self { address, requests, _runtime: runtime }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the number of requests since the start.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }
}
