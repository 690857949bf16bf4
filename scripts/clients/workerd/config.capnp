# A Worker whose KV bindings are namespaces of a mesh: KV at one node, FAR at another one, both of the namespace
# "workerd-client", and NONE of a namespace that does not exist. The addresses below are those of `kvmesh dev`; run.mjs
# names others, and a namespace of its own.
using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [
    (name = "main", worker = .client),
    (name = "kv", external = (address = "127.0.0.1:8580", http = .binding)),
    (name = "far", external = (address = "127.0.0.1:8680", http = .binding)),
    (name = "none", external = (address = "127.0.0.1:8580", http = (
      style = host, injectRequestHeaders = [(name = "Kv-Namespace", value = "no such namespace")]))),
    (name = "bounded", external = (address = "127.0.0.1:8680", http = (
      style = host, injectRequestHeaders = [
        (name = "Kv-Namespace", value = "workerd-client"), (name = "Kv-Max-Staleness", value = "60000")]))),
  ],
  sockets = [(name = "http", address = "127.0.0.1:8790", http = (), service = "main")],
);

const binding :Workerd.HttpOptions = (
  style = host,
  injectRequestHeaders = [(name = "Kv-Namespace", value = "workerd-client")],
);

const client :Workerd.Worker = (
  modules = [(name = "worker.mjs", esModule = embed "worker.mjs")],
  compatibilityDate = "2026-10-01",
  bindings = [
    (name = "KV", kvNamespace = "kv"),
    (name = "FAR", kvNamespace = "far"),
    (name = "NONE", kvNamespace = "none"),
    (name = "BOUNDED", kvNamespace = "bounded"),
  ],
);
