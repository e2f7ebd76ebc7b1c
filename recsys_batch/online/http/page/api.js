// Asks the server. A newer question ends the older one, so that an answer is never shown under another user's name.

export class Problem extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// Ids may be larger than a JavaScript number holds: those stay text, which the server takes for the same id.
function exact(key, value, context) {
  const digits = context?.source;
  return typeof value === "number" && !Number.isSafeInteger(value) && /^-?\d+$/.test(digits ?? "") ? digits : value;
}

export async function ask(path, { token, body, signal }) {
  const headers = {};
  if (token) headers.authorization = `Bearer ${token}`;
  if (body) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "the server does not answer");
  }
  const text = await response.text();
  let told;
  try {
    told = JSON.parse(text, exact);
  } catch {
    throw new Problem(response.status, "the server's answer is not JSON");
  }
  if (!response.ok) throw new Problem(response.status, told.error ?? response.statusText);
  return told;
}

export class Newest {
  #controller = new AbortController();

  signal() {
    this.#controller.abort();
    this.#controller = new AbortController();
    return this.#controller.signal;
  }
}
