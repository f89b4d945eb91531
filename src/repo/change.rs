//! One change of the settings of a layer: decided and made on what its file says under the lock.

use crate::{
    error::{Error, Result, WithContext},
    fs::{Lock, Root},
    repo::{
        config::Config,
        files::Layer,
        keys::{check_key, check_value},
        settings_text,
    },
};

/// A settings file that is being changed, and the settings of all layers as they are now.
pub struct Change<'c> {
    pub config: Config,
    layer: Layer,
    text: &'c mut String,
}

/// Changes the settings of one layer of the folder `.mlx`. The file stays as it was if `change` fails.
pub fn change<T>(
    folder: &Root,
    layer: Layer,
    lock: impl FnOnce() -> Result<Lock>,
    change: impl FnOnce(&mut Change<'_>) -> Result<T>,
) -> Result<T> {
    layer.change(folder, lock, |text| change(&mut Change { config: Config::load(folder)?, layer, text }))
}

impl Change<'_> {
    pub fn set(&mut self, key: &str, value: &str) -> Result<()> {
        check_key(key, self.layer)?;
        check_value(key, value)?;
        *self.text = settings_text::set(self.text, key, value).context(|| self.place())?;
        Ok(())
    }

    /// Removes a key, known or not; one that is not set in this layer is an error.
    pub fn unset(&mut self, key: &str) -> Result<()> {
        let left = settings_text::unset(self.text, key).context(|| self.place())?;
        *self.text =
            left.ok_or_else(|| Error::not_found(format!("`{key}` is not set in `{}`", self.layer.file())))?;
        Ok(())
    }

    fn place(&self) -> String {
        format!("cannot change `{}`", self.layer.file())
    }
}
