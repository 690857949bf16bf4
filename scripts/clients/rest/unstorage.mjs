// unstorage's driver cloudflare-kv-http against the REST API of a mesh.
//   node unstorage.mjs URL NAMESPACE_ID [TOKEN]
// URL has no path. The namespace should be empty; it is empty afterwards.
import assert from "node:assert/strict";
import { createStorage } from "unstorage";
import driver from "unstorage/drivers/cloudflare-kv-http";
import { suite } from "./cases.mjs";

const [apiURL, namespaceId, apiToken = "x".repeat(40)] = process.argv.slice(2);
const test = suite("unstorage");
const store = createStorage({ driver: driver({ accountId: "acc", namespaceId, apiToken, apiURL, minTTL: 60 }) });

await test("set and get", async () => {
  await store.setItem("a:b", "hello");
  assert.equal(await store.getItem("a:b"), "hello");
});
await test("objects with a lifetime", async () => {
  await store.setItem("u x", { n: 1 }, { ttl: 100 });
  assert.deepEqual(await store.getItem("u x"), { n: 1 });
});
await test("missing keys", async () => {
  assert.equal(await store.hasItem("a:b"), true);
  assert.equal(await store.hasItem("none"), false);
  assert.equal(await store.getItem("none"), null);
});
await test("keys", async () => assert.deepEqual((await store.getKeys()).sort(), ["a:b", "u x"]));
await test("remove", async () => {
  await store.removeItem("a:b");
  assert.equal(await store.hasItem("a:b"), false);
});
await test("clear", async () => {
  await store.clear();
  assert.deepEqual(await store.getKeys(), []);
});
