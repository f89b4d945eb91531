//! Kinds of places, by the scheme of their address. To add one, add an arm here.

use std::{path::Path, time::Duration};

use opendal::{
    Operator,
    layers::{ConcurrentLimitLayer, RetryLayer, TimeoutLayer},
    services,
};

use crate::{
    error::{Error, Kind, Result},
    fs::{self, Root},
    path::RepoPath,
    remote::{Access, PARALLEL},
    repo::RemoteConfig,
};

/// What `--set` takes for a bucket; keys and secrets only with `--local`.
pub const OPTIONS: [&str; 14] = [
    "endpoint",
    "region",
    "profile",
    "access_key_id",
    "secret_access_key",
    "session_token",
    "role_arn",
    "external_id",
    "allow_anonymous",
    "skip_signature",
    "enable_virtual_host_style",
    "server_side_encryption",
    "default_storage_class",
    "checksum_algorithm",
];
const TIMEOUT: Duration = Duration::from_mins(1);

pub struct Backend {
    pub operator: Operator,
    pub location: String,
    pub folder: Option<Root>,
}

pub fn open(config: &RemoteConfig, access: Access) -> Result<Backend> {
    if let Some(unknown) = config.options.keys().find(|it| !OPTIONS.contains(&it.as_str())) {
        let error = Error::usage(format!("there is no remote option `{unknown}`"));
        return Err(error.hint(format!("there are: {}", OPTIONS.join(", "))));
    }
    match config.url.split_once("://") {
        Some(("file", path)) => open_folder(path, access),
        None if config.url.starts_with('/') => open_folder(&config.url, access),
        Some(("s3", rest)) => open_bucket(config, rest),
        _ => {
            let error = Error::usage(format!("`{}` is no address of a remote", config.url));
            Err(error.hint("use file:///folder or s3://bucket/prefix"))
        }
    }
}

fn open_folder(path: &str, access: Access) -> Result<Backend> {
    let path = Path::new(path);
    if !path.is_absolute() {
        let error = Error::usage(format!("`{}` is no absolute path", path.display()));
        return Err(error.hint("write three slashes: file:///folder"));
    }
    let parent_exists = path.parent().is_some_and(fs::is_dir);
    if !fs::is_dir(path) {
        if access == Access::Read || !parent_exists {
            let error = Error::not_found(format!("the folder `{}` is not there", path.display()));
            return Err(error.hint("make it, or mount the disk it is on"));
        }
        fs::create_dir(path)?;
    }
    let root = Root::open(path)?;
    let text = path.to_str().ok_or_else(|| Error::usage("the folder of a remote needs a name in UTF-8"))?;
    let mut builder = services::Fs::default().root(text);
    if access == Access::Write {
        root.make_dir(&RepoPath::from_text("v1/tmp")?)?;
        builder = builder.atomic_write_dir(&format!("{text}/v1/tmp"));
    }
    Ok(Backend {
        operator: with_layers(Operator::new(builder))?,
        location: format!("file://{text}"),
        folder: Some(root),
    })
}

fn open_bucket(config: &RemoteConfig, rest: &str) -> Result<Backend> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(Error::usage(format!("`{}` names no bucket", config.url)).hint("use s3://bucket/prefix"));
    }
    let plain = |text: &str| text.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'-' || it == b'.');
    let region = config.options.get("region").map_or("", String::as_str);
    // Both become parts of the address that credentials are sent to.
    if !plain(bucket) || !plain(region) {
        let error = Error::new(
            Kind::Denied,
            "the name of a bucket or a region holds letters, digits, `-` and `.` alone",
        );
        return Err(error.hint(format!("correct the remote `{}`", config.name)));
    }
    let unsigned = config.options.get("skip_signature").is_some_and(|it| it == "true");
    if !unsigned && !config.is_trusted()? {
        return Err(config.untrusted_error());
    }
    // Without this the TLS library has no algorithms; a second call changes nothing.
    drop(rustls::crypto::ring::default_provider().install_default());
    opendal_http_transport_reqwest::install_default();
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
    let operator = with_layers(Operator::from_iter::<services::S3>(options))?;
    Ok(Backend { operator, location: format!("{}{endpoint}", config.url), folder: None })
}

fn with_layers(built: opendal::Result<Operator>) -> Result<Operator> {
    let operator = built.map_err(|it| Error::new(Kind::Usage, it.to_string()))?;
    let retry = RetryLayer::new().with_jitter().with_min_delay(Duration::from_millis(200)).with_max_times(4);
    let timeout = TimeoutLayer::new().with_timeout(TIMEOUT).with_io_timeout(TIMEOUT);
    Ok(operator.layer(timeout).layer(retry).layer(ConcurrentLimitLayer::new(PARALLEL)))
}
