//! Arbitrary values of all keys of format 2, for tests of the lockfile.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::{
    digest::Digest,
    path::RepoPath,
    pipeline::extension::{Cell, Each, Extension},
    pointer::{Content, ContentKind},
};

fn content() -> impl Strategy<Value = Content> {
    let kind = prop_oneof![Just(ContentKind::File), Just(ContentKind::Tree)];
    (any::<[u8; 4]>(), 0_u64..1 << 40, kind, 0_u64..1 << 40).prop_map(|(bytes, files, kind, size)| Content {
        digest: Digest::of(&bytes),
        files,
        kind,
        size,
    })
}

fn contents() -> impl Strategy<Value = BTreeMap<RepoPath, Content>> {
    let path = "[a-z\"%é]{1,4}(/[a-z =]{1,3}x)?";
    let path = path.prop_map(|text: String| RepoPath::from_bytes(text.as_bytes()).unwrap());
    prop::collection::btree_map(path, content(), 0..3)
}

fn cell() -> impl Strategy<Value = Cell> {
    (contents(), contents(), any::<[u8; 4]>(), any::<bool>(), contents())
        .prop_map(|(dep, git, key, not_run, out)| Cell { dep, git, key: Digest::of(&key), not_run, out })
}

/// Returns any values of all keys of format 2.
pub fn any_extension() -> impl Strategy<Value = Extension> {
    let cells = prop::collection::btree_map(any::<String>(), cell(), 0..3);
    let each = (content(), content()).prop_map(|(from, to)| Each { from, to });
    let each = (contents(), each).prop_map(|(paths, each)| {
        paths.into_keys().map(|path| (path, each.clone())).collect::<BTreeMap<_, _>>()
    });
    let globs = prop::collection::btree_map(any::<String>(), content(), 0..3);
    let text = || prop::option::of(any::<String>());
    (any::<bool>(), cells, each, contents(), globs, text(), text(), text()).prop_map(
        |(always, cell, each, found, glob, query, source, watermark)| Extension {
            always,
            cell,
            each,
            found,
            glob,
            query,
            source,
            watermark,
        },
    )
}
