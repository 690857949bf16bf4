// Every call for Workers KV of Cloudflare's TypeScript SDK against the REST API of a mesh.
//   node cloudflare.mjs PACKAGE BASE_URL [TOKEN]
// PACKAGE is the npm package `cloudflare`, version 4 or newer, or an alias of it; BASE_URL ends in /client/v4.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { suite } from "../suite.mjs";

const [pkg, baseURL, apiToken = "x".repeat(40)] = process.argv.slice(2);
const { default: Cloudflare } = await import(pkg);
const test = suite(pkg);
const account_id = "0123456789abcdef0123456789abcdef";
const kv = new Cloudflare({ baseURL, apiToken }).kv.namespaces;
const title = `${pkg}-${randomUUID()}`;
const ns = await kv.create({ account_id, title });

// Before version 7 the calls for one key take the namespace first.
const old = kv.values.update.length === 4;
const one = (group, call, key, params = {}) =>
  old ? kv[group][call](ns.id, key, { account_id, ...params }) : kv[group][call](key, { account_id, namespace_id: ns.id, ...params });
const put = (key, params) => one("values", "update", key, params);
const text = async (key) => (await one("values", "get", key)).text();
const metadata = (key) => one("metadata", "get", key);
const code = (status, number) => (err) => err.status === status && err.errors[0].code === number;

await test("namespace create", () => assert.equal(ns.title, title));
await test("namespace get", async () => assert.equal((await kv.get(ns.id, { account_id })).id, ns.id));
await test("namespace rename", async () => assert.equal((await kv.update(ns.id, { account_id, title: title + "b" })).title, title + "b"));
await test("namespace pages", async () => {
  const walk = async (per_page) => {
    const ids = [];
    for await (const n of kv.list({ account_id, per_page })) ids.push(n.id);
    return ids.sort();
  };
  // Others make and delete namespaces meanwhile, and pages shift: a walk counts if the set was the same before and after.
  let before, ids, after;
  for (let i = 0; i < 50; i++) {
    [before, ids, after] = [await walk(1000), await walk(1), await walk(1000)];
    if (before.join() === after.join() && before.join() === ids.join()) break;
  }
  assert.deepEqual(ids, after);
  assert.ok(ids.includes(ns.id));
});
await test("namespace twice", () => assert.rejects(kv.create({ account_id, title: title + "b" }), code(400, 10014)));
// The older ones do not escape what they put into a path.
for (const key of ["plain", "ü x", "a+b", ...(old ? [] : ["a/b", "%25", "a?b#c"]), "k".repeat(512)]) {
  await test(`value ${key.slice(0, 10)}`, async () => {
    await put(key, { value: `value of ${key}` });
    assert.equal(await text(key), `value of ${key}`);
  });
}
await test("value replaced", async () => {
  await put("r", { value: "1", metadata: { a: "b" } });
  await put("r", { value: "2" });
  assert.deepEqual([await text("r"), await metadata("r")], ["2", null]);
});
await test("metadata as an object", async () => {
  await put("m", { value: "v", metadata: { a: { b: "c" }, list: ["x", "y"] } });
  assert.deepEqual(await metadata("m"), { a: { b: "c" }, list: ["x", "y"] });
});
await test("metadata as text", async () => {
  await put("s", { value: "v", metadata: JSON.stringify({ n: 1, deep: [{}] }) });
  assert.deepEqual(await metadata("s"), { n: 1, deep: [{}] });
});
await test("expiration_ttl", async () => {
  await put("t", { value: "v", expiration_ttl: 1000 });
  const [key] = (await kv.keys.list(ns.id, { account_id, prefix: "t" })).result;
  const left = key.expiration - Date.now() / 1000;
  assert.ok(left > 900 && left <= 1001, String(left));
  await assert.rejects(put("t", { value: "v", expiration_ttl: 59 }), code(400, 10034));
});
const items = Array.from({ length: 2500 }, (_, i) => ({ key: `k${String(i).padStart(4, "0")}`, value: `v${i}`, metadata: { i } }));
await test("bulk put", async () => {
  const done = await kv.bulkUpdate(ns.id, { account_id, body: items });
  assert.deepEqual([done.successful_key_count, done.unsuccessful_keys], [2500, []]);
});
await test("key pages", async () => {
  const names = [];
  for await (const key of kv.keys.list(ns.id, { account_id, prefix: "k0", limit: 300 })) names.push(key.name);
  assert.deepEqual(names, items.map((it) => it.key).filter((name) => name.startsWith("k0")));
});
await test("bulk get", async () => {
  const plain = await kv.bulkGet(ns.id, { account_id, keys: ["k0001", "none"] });
  assert.deepEqual(plain, { values: { k0001: "v1", none: null } });
  const full = await kv.bulkGet(ns.id, { account_id, keys: ["k0001"], withMetadata: true });
  assert.deepEqual(full.values.k0001, { value: "v1", metadata: { i: 1 } });
});
await test("bulk delete", async () => {
  const done = await kv.bulkDelete(ns.id, { account_id, body: items.map((it) => it.key) });
  assert.equal(done.successful_key_count, 2500);
  assert.deepEqual((await kv.keys.list(ns.id, { account_id, prefix: "k0" })).result, []);
});
await test("delete", async () => {
  assert.equal(await one("values", "delete", "m"), null);
  await assert.rejects(text("m"), code(404, 10009));
  await assert.rejects(metadata("m"), code(404, 10009));
});
await test("namespace delete", async () => {
  assert.equal(await kv.delete(ns.id, { account_id }), null);
  await assert.rejects(kv.get(ns.id, { account_id }), code(404, 10013));
});
