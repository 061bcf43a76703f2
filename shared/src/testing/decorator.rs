//! The base of transports that wrap another one and change some of its methods.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::{
    Capabilities, Consumer, EventFilter, EventReader, Health, JournalReader, Lane, Publisher, Queue, Shards,
    Transport, TransportError,
};

/// A transport that wraps another one. Each method forwards to the inner transport, unless the
/// decorator defines it.
#[async_trait]
pub trait TransportDecorator: fmt::Display + fmt::Debug + Send + Sync + 'static {
    /// Returns the transport that is wrapped.
    fn inner(&self) -> &dyn Transport;

    /// See [`Transport::capabilities`].
    fn capabilities(&self) -> Capabilities {
        self.inner().capabilities()
    }

    /// See [`Transport::open_lane`].
    async fn open_lane(&self, lane: &Lane) -> Result<(), TransportError> {
        self.inner().open_lane(lane).await
    }

    /// See [`Transport::open_shards`].
    async fn open_shards(&self, lane: &Lane, at_least: Shards) -> Result<Shards, TransportError> {
        self.inner().open_shards(lane, at_least).await
    }

    /// See [`Transport::publisher`].
    async fn publisher(&self) -> Result<Arc<dyn Publisher>, TransportError> {
        self.inner().publisher().await
    }

    /// See [`Transport::consume`].
    async fn consume(&self, queue: &Queue, prefetch: u16) -> Result<Box<dyn Consumer>, TransportError> {
        self.inner().consume(queue, prefetch).await
    }

    /// See [`Transport::journal`].
    async fn journal(&self) -> Result<Box<dyn JournalReader>, TransportError> {
        self.inner().journal().await
    }

    /// See [`Transport::events`].
    async fn events(&self, filter: EventFilter) -> Result<Box<dyn EventReader>, TransportError> {
        self.inner().events(filter).await
    }

    /// See [`Transport::health`].
    fn health(&self) -> watch::Receiver<Health> {
        self.inner().health()
    }

    /// See [`Transport::close`].
    async fn close(&self) {
        self.inner().close().await;
    }
}

#[async_trait]
impl<T: TransportDecorator> Transport for T {
    fn capabilities(&self) -> Capabilities {
        TransportDecorator::capabilities(self)
    }

    async fn open_lane(&self, lane: &Lane) -> Result<(), TransportError> {
        TransportDecorator::open_lane(self, lane).await
    }

    async fn open_shards(&self, lane: &Lane, at_least: Shards) -> Result<Shards, TransportError> {
        TransportDecorator::open_shards(self, lane, at_least).await
    }

    async fn publisher(&self) -> Result<Arc<dyn Publisher>, TransportError> {
        TransportDecorator::publisher(self).await
    }

    async fn consume(&self, queue: &Queue, prefetch: u16) -> Result<Box<dyn Consumer>, TransportError> {
        TransportDecorator::consume(self, queue, prefetch).await
    }

    async fn journal(&self) -> Result<Box<dyn JournalReader>, TransportError> {
        TransportDecorator::journal(self).await
    }

    async fn events(&self, filter: EventFilter) -> Result<Box<dyn EventReader>, TransportError> {
        TransportDecorator::events(self, filter).await
    }

    fn health(&self) -> watch::Receiver<Health> {
        TransportDecorator::health(self)
    }

    async fn close(&self) {
        TransportDecorator::close(self).await;
    }
}
