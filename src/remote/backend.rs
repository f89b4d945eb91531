//! Backends of remotes, chosen by the scheme of the URL: a folder (`file://`) or a bucket (`s3://`).
//!
//! A new backend is one more arm in [`open`] and one more kind of [`Address`].

use std::{path::Path, time::Duration};

use opendal::{
    HttpTransporter, Operator,
    layers::{ConcurrentLimitLayer, RetryLayer, TimeoutLayer},
    services,
};
use opendal_http_transport_reqwest::ReqwestTransport;

use crate::{
    error::{Error, Kind, Result, WithContext},
    fs::{self, Root},
    path::RepoPath,
    remote::{
        Access, PARALLEL,
        address::{Address, check_setting},
        failure,
    },
    repo::RemoteConfig,
};

/// Largest time for an answer, and until the next part of a download arrives.
const TIMEOUT: Duration = Duration::from_mins(1);
/// Largest time for the upload of one file: packs are small on a slow line, and TCP notices within
/// [`TIMEOUT`] if one stands still.
const UPLOAD_TIMEOUT: Duration = Duration::from_mins(15);

/// An opened backend: the operator, the address without secrets, and the folder if it is one.
pub struct Backend {
    pub operator: Operator,
    /// The same, with the time that an upload may take.
    pub uploads: Operator,
    pub location: String,
    pub folder: Option<Root>,
}

/// Opens the backend of a configured remote; for writing, creates a missing folder.
pub fn open(config: &RemoteConfig, access: Access) -> Result<Backend> {
    config.options.iter().try_for_each(|(name, value)| check_setting(name, value))?;
    match Address::parse(&config.url)? {
        Address::Folder(path) => open_folder(config, &path, access),
        Address::Bucket(bucket, prefix) => open_bucket(config, &bucket, &prefix),
    }
}

fn open_folder(config: &RemoteConfig, path: &Path, access: Access) -> Result<Backend> {
    let parent_exists = path.parent().is_some_and(fs::is_dir);
    if !fs::is_folder(path)? {
        if access == Access::Read || !parent_exists {
            let error = Error::not_found(format!("the folder `{}` does not exist", path.display()));
            return Err(error.hint("create it, or mount the disk that contains it"));
        }
        fs::create_dir(path)?;
    }
    let root = Root::open(path)?;
    let text = path.to_str().ok_or_else(|| Error::usage("the path of a remote folder must be UTF-8"))?;
    let mut builder = services::Fs::default().root(text);
    if access == Access::Write {
        let made = root.create_dir(&RepoPath::from_text("v1/tmp")?);
        let made = made.context(|| format!("cannot write to the folder `{text}`"));
        made.map_err(|error| match error.kind() {
            Kind::Denied => error.hint(failure::FOLDER_PERMISSION),
            _ => error,
        })?;
        builder = builder.atomic_write_dir(&format!("{text}/v1/tmp"));
    }
    let (operator, uploads) = with_layers(config, Operator::new(builder))?;
    Ok(Backend { operator, uploads, location: format!("file://{text}"), folder: Some(root) })
}

fn open_bucket(config: &RemoteConfig, bucket: &str, prefix: &str) -> Result<Backend> {
    let unsigned = config.options.get("skip_signature").is_some_and(|it| it == "true");
    if !unsigned && !config.is_trusted()? {
        return Err(config.untrusted_error());
    }
    // The TLS library needs a default provider; a second call has no effect.
    drop(rustls::crypto::ring::default_provider().install_default());
    HttpTransporter::install_default(ReqwestTransport::new(http_client()?));
    let mut options: Vec<(String, String)> = config.options.clone().into_iter().collect();
    options.push(("bucket".to_owned(), bucket.to_owned()));
    options.push(("root".to_owned(), format!("/{prefix}")));
    if !config.options.contains_key("region") && std::env::var_os("AWS_REGION").is_none() {
        options.push((
            "region".to_owned(),
            std::env::var("AWS_DEFAULT_REGION").unwrap_or_else(|_| "us-east-1".into()),
        ));
    }
    let endpoint = config.options.get("endpoint").map(|it| format!(" ({it})")).unwrap_or_default();
    let (operator, uploads) = with_layers(config, Operator::from_iter::<services::S3>(options))?;
    Ok(Backend { operator, uploads, location: format!("{}{endpoint}", config.url), folder: None })
}

/// Returns a client that gives a connection up if the other side acknowledges no bytes for a while.
fn http_client() -> Result<reqwest::Client> {
    let client = reqwest::Client::builder().connect_timeout(TIMEOUT).tcp_user_timeout(TIMEOUT).build();
    client.map_err(|error| Error::new(Kind::Internal, "cannot create the HTTP client").with_source(error))
}

/// Returns an operator for all but uploads, and one for uploads.
fn with_layers(config: &RemoteConfig, built: opendal::Result<Operator>) -> Result<(Operator, Operator)> {
    let subject = || format!("cannot use the remote `{}`", config.name);
    let operator = built.map_err(|error| failure::explain(&subject(), &config.name, &error))?;
    let retry = RetryLayer::new().with_jitter().with_min_delay(Duration::from_millis(200)).with_max_times(4);
    let limit = ConcurrentLimitLayer::new(PARALLEL);
    let layered = |io_timeout| {
        let timeout = TimeoutLayer::new().with_timeout(TIMEOUT).with_io_timeout(io_timeout);
        operator.clone().layer(timeout).layer(retry.clone()).layer(limit.clone())
    };
    Ok((layered(TIMEOUT), layered(UPLOAD_TIMEOUT)))
}
