@echo off
rem The twin of the Makefile: "make run" and "make test" on Windows, here without make.
setlocal
cd /d "%~dp0"
set "PYTHONUTF8=1"
set "PIP_DISABLE_PIP_VERSION_CHECK=1"
if not defined PYTHON set "PYTHON=py -3"
if not defined CONFIG set "CONFIG=configs\quickstart.yaml"
set "BIN=.venv\Scripts"
if /i "%~1"=="install" goto install
if /i "%~1"=="run" goto run
if /i "%~1"=="test" goto test
if /i "%~1"=="lint" goto lint
echo make install   the virtual environment .venv with the tested versions of everything
echo make run       start the pipeline, or go on after any interruption
echo make test      lint, types, and every test except the long soaks
echo make lint      ruff and mypy --strict
exit /b 0

:install
call :installed
exit /b %errorlevel%

:run
call :installed || exit /b 1
"%BIN%\so8t.exe" --home "%CD%" resume --config "%CONFIG%"
exit /b %errorlevel%

:test
call :installed || exit /b 1
call :checked || exit /b 1
"%BIN%\python.exe" -m pytest -m "not soak"
exit /b %errorlevel%

:lint
call :installed || exit /b 1
call :checked
exit /b %errorlevel%

:checked
"%BIN%\ruff.exe" check . || exit /b 1
"%BIN%\mypy.exe" --strict so8t_fsm
exit /b %errorlevel%

rem Once; again when constraints.txt or pyproject.toml differ from the copies kept in .venv.
:installed
fc /b constraints.txt .venv\constraints.txt >nul 2>nul && fc /b pyproject.toml .venv\pyproject.toml >nul 2>nul && exit /b 0
if not exist "%BIN%\python.exe" %PYTHON% -m venv .venv || exit /b 1
for /f "delims=" %%v in ('findstr /b "torch==" constraints.txt') do "%BIN%\python.exe" -m pip install --quiet "%%v" || exit /b 1
"%BIN%\python.exe" -m pip install --quiet -c constraints.txt -e .[dev,postgres] || exit /b 1
copy /y constraints.txt .venv\constraints.txt >nul
copy /y pyproject.toml .venv\pyproject.toml >nul
exit /b 0
