%% Runs scripts that the model ran on Erlang/OTP's own supervisor, and tells where the two part. Each term of the file is a tree, what was
%% seen of its start, and steps with what was seen of each: starts and stops in order, answers, and the children of each supervisor.
-module(otp).
-export([main/1, init/1, start/2]).

main([File]) ->
    process_flag(trap_exit, true),
    logger:set_primary_config(level, none),
    {ok, Scripts} = file:consult(File),
    Parted = [P || S <- Scripts, P <- [catch script(S)], P =/= ok],
    [io:format("~p~n", [P]) || P <- lists:sublist(Parted, 3)],
    io:format("~p scripts, ~p differ~n", [length(Scripts), length(Parted)]),
    halt().

script({Tree, Boot, Steps}) ->
    [catch ets:delete(T) || T <- [outcomes, log, paths, kinds]],
    [ets:new(T, [public, named_table, ordered_set]) || T <- [outcomes, log, paths, kinds]],
    Top = start("r", Tree),
    same(boot, Boot, []),
    [step(S) || S <- Steps],
    case Top of
        {ok, P} -> exit(P, shutdown), receive {'EXIT', P, _} -> ok end;
        _ -> ok
    end.

%% All mail of a step is in the mailbox before the supervisor takes the first.
step({Acts, Seen}) ->
    Sups = [P || Path <- lists:usort([element(2, A) || A <- Acts]), {_, P} <- ets:lookup(paths, Path)],
    [sys:suspend(P) || P <- Sups],
    Asked = lists:flatmap(fun act/1, Acts),
    [sys:resume(P) || P <- Sups],
    same(Acts, Seen, Asked).

act({outcomes, none, Outcomes}) -> ets:insert(outcomes, {next, Outcomes}), [];
act({ends, Sup, Id, Reason}) ->
    case ets:lookup(paths, Sup ++ "/" ++ Id) of
        [{_, P}] ->
            M = monitor(process, P),
            P ! {ends, Reason},
            receive {'DOWN', M, _, _, _} -> timer:sleep(1) end,
            [];
        [] -> []
    end;
act({start_child, Sup, Node}) -> ask(Sup, {start_child, spec(Sup, Node)});
act({Command, Sup, Id}) -> ask(Sup, {Command, Id}).

ask(Sup, Request) -> [{_, P}] = ets:lookup(paths, Sup), [gen_server:send_request(P, Request)].

same(Step, Expected, Asked) ->
    quiet(3),
    Trace = [X || {_, X} <- ets:tab2list(log)],
    ets:delete_all_objects(log),
    Answers = [answer(gen_server:receive_response(R, 5000)) || R <- Asked],
    Sups = [{Path, P} || {Path, P} <- ets:tab2list(paths), is_process_alive(P), ets:lookup(kinds, P) == [{P, sup}]],
    Shown = [{Path, [{Id, pid(C)} || {Id, C, _, _} <- lists:reverse(supervisor:which_children(P))]} || {Path, P} <- Sups],
    case {Trace, Answers, Shown} of
        Expected -> ok;
        Seen -> throw({Step, {otp, Seen}, {model, Expected}})
    end.

pid(P) when is_pid(P) -> pid;
pid(Other) -> Other.

answer({reply, ok}) -> ok;
answer({reply, {ok, _}}) -> ok;
answer({reply, {error, {already_started, _}}}) -> already_started;
answer({reply, {error, {bad_combination, _}}}) -> bad_combination;
answer({reply, {error, E}}) when is_atom(E) -> E;
answer({reply, {error, {no_start, _}}}) -> no_start;
answer({reply, {error, {{shutdown, _}, _}}}) -> no_start;
answer({error, _}) -> down.

%% Nobody runs, and nobody has mail, so many times in a row.
quiet(0) -> ok;
quiet(N) ->
    timer:sleep(2),
    Idle = fun({P, _}) ->
        lists:member(process_info(P, [status, message_queue_len]), [undefined, [{status, waiting}, {message_queue_len, 0}]])
    end,
    case lists:all(Idle, ets:tab2list(kinds)) of
        true -> quiet(N - 1);
        false -> quiet(3)
    end.

init({Path, {sup, Strategy, Auto, Intensity, Nodes}}) ->
    ets:insert(paths, {Path, self()}),
    ets:insert(kinds, {self(), sup}),
    Flags = #{strategy => Strategy, intensity => Intensity, period => 3600, auto_shutdown => Auto},
    {ok, {Flags, [spec(Path, N) || N <- Nodes]}}.

spec(Path, {Id, Restart, Significant, Shutdown, Kind}) ->
    Type = case Kind of worker -> worker; _ -> supervisor end,
    #{id => Id, restart => Restart, significant => Significant, shutdown => Shutdown, type => Type,
      start => {?MODULE, start, [Path ++ "/" ++ Id, Kind]}}.

start(Path, worker) ->
    Outcome = case ets:lookup(outcomes, next) of
        [{_, [Next | Rest]}] -> ets:insert(outcomes, {next, Rest}), Next;
        _ -> up
    end,
    log(Outcome, Path),
    case Outcome of
        no_start -> {error, no_start};
        ignored -> ignore;
        up ->
            Sup = self(),
            P = spawn_link(fun() -> process_flag(trap_exit, true), Sup ! {up, self()}, worker(Path) end),
            receive {up, P} -> ok end,
            ets:insert(paths, {Path, P}),
            ets:insert(kinds, {P, worker}),
            {ok, P}
    end;
start(Path, Tree) ->
    case supervisor:start_link(?MODULE, {Path, Tree}) of
        {ok, P} -> log(up, Path), {ok, P};
        Failed -> Failed
    end.

worker(Path) ->
    receive
        {ends, Reason} -> exit(Reason);
        {'EXIT', _, Reason} -> log(stopped, Path), exit(Reason)
    end.

log(What, Path) -> ets:insert(log, {erlang:unique_integer([monotonic]), {What, Path}}).
