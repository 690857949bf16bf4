// Runs worker.mjs in Miniflare, whose remote form of a KV binding every node serves, case by case:
//   node miniflare.mjs HOST:PORT HOST:PORT
// These are two nodes; the package miniflare must be installed where Node looks for it.
import { readFileSync } from "node:fs";
import { Miniflare } from "miniflare";
import { drive, namespace } from "./drive.mjs";

const client = "miniflare";
const [near, far] = process.argv.slice(2);
const title = await namespace(client, [near, far]);
const binding = (node, title) => ({
  id: `${node} ${title}`,
  remoteProxyConnectionString: new URL(`/v1/miniflare/${encodeURIComponent(title)}`, `http://${node}`),
});
const mf = new Miniflare({
  modules: [{ type: "ESModule", path: "worker.mjs", contents: readFileSync(new URL("worker.mjs", import.meta.url), "utf8") }],
  compatibilityDate: "2026-04-01",
  kvNamespaces: {
    KV: binding(near, title),
    FAR: binding(far, title),
    NONE: binding(near, "no such namespace"),
    BOUNDED: binding(far, title), // Miniflare injects no headers, so this one is not bounded
  },
});
// Miniflare sends a remote binding's requests on through a Worker of its own. When the source of a stream breaks, that Worker
// has been seen to end the request in order, without a byte (once in eight runs): a server cannot tell it from an empty value.
const except = ["a stream that fails stores nothing"];
try {
  await drive(client, async (path) => {
    const answer = await mf.dispatchFetch(`http://localhost${path}`);
    const text = await answer.text();
    try {
      return JSON.parse(text);
    } catch {
      throw new Error(`GET ${path}: ${answer.status} ${text.slice(0, 500)}`);
    }
  }, except);
} finally {
  await mf.dispose();
}
