-- {worker, calls to release} → nothing. The worker lives, and so does the state.

renew(step.worker)
is_younger(0)
for _, call in ipairs(step.calls) do release(step.worker, call) end
