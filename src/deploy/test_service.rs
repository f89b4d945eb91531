//! Test support: a service with a fake model that answers only while its gate is open.

use std::{
    collections::BTreeMap,
    io::Cursor,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use axum::{body::Body, extract::Request};
use http_body_util::BodyExt as _;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;

use crate::{
    deploy::{
        Options, ServedModel, Service,
        batch::{BatchLimits, Batcher},
        http::routes,
    },
    digest::Digest,
    error::Result,
    model::{
        engine::Engine,
        package::{Description, Input, Provenance},
        settings::ResizeFilter,
    },
};

const SIDE: u32 = 8;

/// Fake model that blocks while the gate is closed.
#[derive(Clone)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn closed() -> Self {
        Self(Arc::new((Mutex::new(false), Condvar::new())))
    }

    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    pub fn close(&self) {
        *self.0.0.lock().unwrap() = false;
    }
}

impl Engine for Gate {
    fn run(&mut self, planes: &[f32], side: usize) -> Result<Vec<f32>> {
        drop(self.0.1.wait_while(self.0.0.lock().unwrap(), |open| !*open).unwrap());
        Ok(planes.chunks(3 * side * side).flat_map(|_| [0.75, 0.25]).collect())
    }

    fn id(&self) -> String {
        "gate".into()
    }
}

/// Returns a version with two classes behind a gate, with batches of one image.
pub fn served(gate: &Gate, model: &str, classes: [&str; 2]) -> Arc<ServedModel> {
    let digest = Digest::of(b"some");
    let made_from =
        Provenance { backbone: digest, data: digest, head: digest, params: digest, split: digest };
    let input = Input { crop: SIDE, filter: ResizeFilter::Triangle, name: "pixels".into(), resize: SIDE };
    let limits = BatchLimits { max_batch: 1, max_wait: Duration::ZERO, queue: 16 };
    Arc::new(ServedModel {
        model: model.into(),
        number: "v0.1.0".into(),
        package: digest,
        description: Description {
            classes: classes.map(String::from).to_vec(),
            format: 1,
            input,
            made_from,
            metrics: BTreeMap::new(),
            output: "probabilities".into(),
        },
        engine: "gate".into(),
        batcher: Batcher::start(Box::new(gate.clone()), SIDE as usize, limits).unwrap(),
    })
}

/// Returns a service with the classes cat and dog.
pub fn service(gate: &Gate, deadline: Duration) -> Arc<Service> {
    let options = Options {
        environment: "test".into(),
        address: ([127, 0, 0, 1], 0).into(),
        token: None,
        deadline,
        max_body: 1 << 20,
        body_memory: 1 << 20,
        max_pixels: 1 << 20,
        max_connections: 16,
    };
    Service::new(served(gate, "pets", ["cat", "dog"]), options)
}

/// Returns a PNG that differs from those of other numbers.
pub fn image(number: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let pixels = image::RgbImage::from_pixel(SIDE, SIDE, image::Rgb([number; 3]));
    pixels.write_to(&mut Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
    bytes
}

/// Sends one request to the router, without a socket; returns status and body.
pub fn request(
    service: &Arc<Service>,
    method: &str,
    path: &str,
    body: Body,
) -> impl Future<Output = (u16, String)> + Send + use<> {
    let request = Request::builder().method(method).uri(path).body(body).unwrap();
    let routes = TowerToHyperService::new(routes(service));
    async move {
        let response = routes.call(request).await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&bytes).into_owned())
    }
}
