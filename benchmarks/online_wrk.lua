-- Requests of wrk: RECSYS_KIND is one of these paths, RECSYS_USERS the number of users. The same bodies as online_load.py.
local kind, users = os.getenv("RECSYS_KIND"), tonumber(os.getenv("RECSYS_USERS"))
local paths = {
   ours = "/v1/rank",
   before = "/v1/rank",
   torchserve = "/predictions/rerank",
   torchserve_b4 = "/predictions/rerank_b4",
   triton = "/v2/models/rerank/infer",
   pytriton = "/v2/models/rerank/infer",
}
math.randomseed(7)
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"

request = function()
   local user = math.random(0, users - 1)
   local body
   if string.sub(kind, -6) == "triton" then
      body = string.format('{"inputs":[{"name":"user_id","datatype":"INT64","shape":[1,1],"data":[%d]}]}', user)
   elseif string.sub(kind, 1, 10) == "torchserve" then
      body = string.format('{"user_id":%d}', user)
   else
      body = string.format(
         '{"user_id":%d,"k":10,"context":{"timestamp":%d,"device":"mobile","session_item_ids":[%d,%d,%d]}}',
         user, 1700000000 + user, user + 1, 3 * user + 7, 900000 - user)
   end
   return wrk.format(nil, paths[kind], nil, body)
end

done = function(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format('{"qps": %.1f, "p50": %.3f, "p99": %.3f, "max": %.3f, "requests": %d, "not_200": %d, "socket_errors": %d}\n',
      summary.requests / (summary.duration / 1e6), latency:percentile(50) / 1000, latency:percentile(99) / 1000,
      latency.max / 1000, summary.requests, errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
