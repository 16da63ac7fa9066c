// What the page asks of the server. A static export puts offline.js in its place, which offers the same.

async function ask(address, body) {
  const options = {signal: AbortSignal.timeout(15000), credentials: 'omit', cache: 'no-store'};
  if (body) Object.assign(options, {method: 'POST', headers: {'content-type': 'application/json'}, body: JSON.stringify(body)});
  let response;
  try {
    response = await fetch(address, options);
  } catch {
    throw new Error('no connection');
  }
  let content = null;
  try { content = await response.json(); } catch { /* cut off on its way */ }
  if (response.ok && content) return content;
  // Too early: votes kept while the connection was lost arrive all at once, and the server takes one each minimum time.
  const why = response.status === 425 ? 'sending' : content?.detail;
  const error = new Error(why || 'the server did not answer');
  error.status = response.status;
  error.wait = Number(response.headers.get('retry-after')) || 0;
  error.final = response.status >= 400 && response.status < 500 && ![408, 425, 429].includes(response.status);
  throw error;
}

const [, kind, token] = location.pathname.split('/');

export const backend = {
  token,
  invited: kind === 's', // not yet a rater
  offline: false,
  about: () => ask(`/api/studies/${token}`),
  join: key => ask(`/api/studies/${token}/raters`, {key}),
  link: rater => `${location.origin}/r/${rater}`,
  state: () => ask(`/api/raters/${token}`),
  vote: (trial, answers) => ask(`/api/trials/${trial}/vote`, answers),
};
